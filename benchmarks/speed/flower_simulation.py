"""The Flower side of B4: `run_simulation` with Ray, FedAvg, and a ClientApp that calls our `fit`.

One actor at a time gets both cores, keeps the model and the data that its first client loaded, and holds the other
clients one by one, as Flower's users do it. The message carries the adapter alone.
"""

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.speed import simulation
from benchmarks.speed.material import configuration, our_model, task_of
from fedcollm.config import ClientConfig
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.seeding import derive_seed
from fedcollm.training.fine_tuning import fit

CORES = 2

app = ClientApp()


@functools.cache
def _loaded(case: str) -> tuple[Any, Any, list[list[Any]]]:
    """Task, model and data of this actor."""
    values = json.loads(case)
    config = configuration(values | {"examples": simulation.BATCH_SIZE})
    task = task_of(config)
    return task, our_model(config, "slm", task), simulation.read_parts(values)


@app.train()
def train(message: Message, context: Context) -> Message:
    """What `fedcollm.federation.client.Client` does: set the adapter, fit, give it back."""
    task, slm, parts = _loaded(str(message.content["config"]["case"]))
    client = int(context.node_config["partition-id"])
    examples = parts[client % len(parts)]
    write_adapter(slm, message.content["arrays"].to_torch_state_dict())
    start = time.perf_counter()
    settings = ClientConfig(batch_size=simulation.BATCH_SIZE, learning_rate=simulation.LEARNING_RATE)
    fit(task, slm, examples, settings, derive_seed(simulation.SEED, "client", str(client), 1))
    metrics = {"num-examples": len(examples), "fit_seconds": time.perf_counter() - start}
    tuned = ArrayRecord({name: tensor.float() for name, tensor in read_adapter(slm).items()})
    return Message(RecordDict({"arrays": tuned, "metrics": MetricRecord(metrics)}), reply_to=message)


def flower(case: dict) -> Callable[[], dict]:
    """A whole simulation: Ray, its actor, one round of FedAvg over all clients."""
    directory = tempfile.TemporaryDirectory()
    stored = simulation.stored_parts(case, Path(directory.name))

    def repeat(_kept: Any = directory) -> dict:
        found: dict[str, Any] = {}
        start = time.perf_counter()
        with simulation.tree_memory() as memory:
            resources = {"client_resources": {"num_cpus": CORES, "num_gpus": 0.0}, "init_args": {"num_cpus": CORES}}
            run_simulation(_server_app(stored, found), app, case["clients"], "ray", resources)
        return found | {"seconds": time.perf_counter() - start, "clients": case["clients"], "peak_bytes": memory[0]}

    return repeat


def _server_app(case: dict, found: dict[str, Any]) -> ServerApp:
    """One round of FedAvg; leaves its figures in `found`."""
    server = ServerApp()
    settings = {name: case[name] for name in ("clients", "client_examples", "data", "models", "dtype", "parts")}

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        everyone = case["clients"]
        strategy = FedAvg(1.0, 0.0, min_train_nodes=everyone, min_available_nodes=everyone)
        initial = ArrayRecord(simulation.initial_adapter(case))
        start = time.perf_counter()
        result = strategy.start(grid, initial, 1, train_config=ConfigRecord({"case": json.dumps(settings)}))
        seconds = time.perf_counter() - start
        spent = float(result.train_metrics_clientapp[1]["fit_seconds"]) * everyone
        found.update(round_seconds=seconds, fit_seconds=spent, outside_training=1 - spent / seconds)
        found["adapter"] = simulation.sketch(result.arrays.to_torch_state_dict())

    return server
