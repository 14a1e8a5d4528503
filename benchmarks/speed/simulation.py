"""B4: many clients in one simulation, `LocalTransport` beside Flower's own simulation engine, with one client function.

A repetition is a whole simulation of one round: load the model, let every client `fit`, aggregate. There is no
distillation and no scoring. Clients have 16 `icd10` examples each, one step; beyond 64 clients the same 64 parts are
used again. The Flower side is `flower_simulation.py`. Memory is the peak of the PSS of the process and of all its
descendants, sampled: Ray runs several processes, and PSS counts a page that they share once. The 1000 clients are held
against 4 that have the same 1024 examples: batches of new shapes cost memory once, whoever's they are.
"""

import contextlib
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any
from unittest import mock

import psutil
from torch import Tensor

from benchmarks.speed.material import SMOLLM2, configuration, data_of, our_model, task_of
from fedcollm.config import ClientConfig
from fedcollm.federation import client as client_module
from fedcollm.federation.aggregation.plain import PlainAggregator
from fedcollm.federation.client import Agreement, Client
from fedcollm.federation.server import Server
from fedcollm.models.adapters import read_adapter
from fedcollm.seeding import RunIdentity
from fedcollm.training.distillation import ModelPair
from fedcollm.transports.local import LocalTransport

#: Largest difference of a value of the mean adapter: Flower sums in float32 and in the order of arrival.
TOLERANCE = 1e-6

BATCH_SIZE, LEARNING_RATE, SEED, PARTS = 16, 1e-3, 0, 64
_SAMPLING_SECONDS, _STRIDE = 0.5, 61


def _case(title: str, clients: int, peer: str, form: str, examples: int = 16, **more: Any) -> dict:
    return {
        "row": "B4",
        "title": title,
        "ours": "benchmarks.speed.simulation:ours",
        "peer": peer,
        "form": form,
        "separate": True,
        "cold": True,
        "repetitions": 1,
        "clients": clients,
        "client_examples": examples,
        "data": "icd10",
        "models": SMOLLM2,
        "dtype": "bfloat16",
        **more,
    }


_FLOWER = {"peer_name": "Flower's simulation (Ray)", "same": "benchmarks.speed.simulation:same"}
_FLOWER_SIDE = "benchmarks.speed.flower_simulation:flower"
_SMALL = {
    "peer_name": "fedcollm with 4 clients",
    "peer": "benchmarks.speed.simulation:ours_with_few",
    "same": "benchmarks.speed.simulation:finished",
    "memory_target": "≤ 1.10 ×",
}

CASES = (
    _case("4 clients", 4, _FLOWER_SIDE, "short", **_FLOWER),
    _case("64 clients", 64, _FLOWER_SIDE, "long", memory_target="≤ 0.2 ×", **_FLOWER),
    _case("1000 clients against 4 with the same examples", 1000, form="long", **_SMALL),
    _case("4 clients of 320 examples", 4, _FLOWER_SIDE, "long", examples=320, **_FLOWER),
)


def stored_parts(case: dict, directory: Path) -> dict:
    """The case with `parts`, a file: the `PARTS` parts that clients are given in turn.

    It is written before the clock starts, so that where the texts come from counts on neither side.
    """
    size, count = case["client_examples"], min(PARTS, case["clients"])
    private = data_of(configuration(case | {"examples": size * count // 4})).private
    pool = [example for part in private.values() for example in part]
    file = directory / "parts.pickle"
    file.write_bytes(pickle.dumps([pool[start : start + size] for start in range(0, size * count, size)]))
    return case | {"parts": str(file)}


def read_parts(case: dict) -> list[list[Any]]:
    """What `stored_parts` wrote."""
    return pickle.loads(Path(case["parts"]).read_bytes())


def ours(case: dict) -> Callable[[], dict]:
    """One round of `Server` on `LocalTransport`."""
    directory = tempfile.TemporaryDirectory()
    stored = stored_parts(case, Path(directory.name))

    def repeat(_kept: Any = directory) -> dict:
        start = time.perf_counter()
        with tree_memory() as memory:
            server = _server(stored)
            loaded, spent = time.perf_counter(), []
            with mock.patch.object(client_module, "fit", _timed(client_module.fit, spent)):
                record = server.run_round(1, score=False)
            end = time.perf_counter()
        return {
            "seconds": end - start,
            "round_seconds": end - loaded,
            "fit_seconds": sum(spent),
            "outside_training": 1 - sum(spent) / (end - loaded),
            "clients": len(record.participants),
            "peak_bytes": memory[0],
            "adapter": sketch(server.adapter),
        }

    return repeat


def ours_with_few(case: dict) -> Callable[[], dict]:
    """`ours` with the same 64 parts dealt to 4 clients, the peer in memory of `ours` with many."""
    return ours(case | {"clients": 4, "client_examples": case["client_examples"] * PARTS // 4})


def _server(case: dict) -> Server:
    config = configuration(case | {"examples": BATCH_SIZE})
    task, parts = task_of(config), read_parts(case)
    slm = our_model(config, "slm", task)
    settings = ClientConfig(batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE)
    agreement = Agreement(RunIdentity(seed=SEED))
    clients = {
        str(i): Client(str(i), task, slm, parts[i % len(parts)], (), settings, agreement=agreement)
        for i in range(case["clients"])
    }
    pair, identity = ModelPair(task, slm), RunIdentity(seed=SEED)
    return Server(pair, (), (), LocalTransport(clients), PlainAggregator(), identity=identity)


def _timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The function, whose seconds are added to `spent`."""

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments, **options)
        spent.append(time.perf_counter() - start)
        return result

    return timed


@contextlib.contextmanager
def tree_memory() -> Iterator[list[int]]:
    """Peak bytes of this process and its descendants, in the one entry of the list, once left."""
    peak, done = [0], Event()

    def watch() -> None:
        while not done.wait(_SAMPLING_SECONDS):
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            peak[0] = max(peak[0], sum(_pss_bytes(process.pid) for process in processes))

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _pss_bytes(process: int) -> int:
    """Proportional set size; 0 if the process is gone."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def sketch(adapter: dict[str, Tensor]) -> dict[str, list[float]]:
    """Every 61st value of each tensor: what two processes can compare."""
    return {name: tensor.flatten()[::_STRIDE].float().tolist() for name, tensor in sorted(adapter.items())}


def initial_adapter(case: dict) -> dict[str, Tensor]:
    """The adapter that every client starts from."""
    config = configuration(case | {"examples": BATCH_SIZE})
    return read_adapter(our_model(config, "slm", task_of(config)))


def same(one: dict, other: dict) -> str:
    """The two mean adapters agree.

    Raises:
        ValueError: they don't, or clients are missing.
    """
    finished(one, other)
    if one["clients"] != other["clients"] or one["adapter"].keys() != other["adapter"].keys():
        raise ValueError(f"{one['clients']} and {other['clients']} clients, or other tensors")
    pairs = [pair for name in one["adapter"] for pair in zip(one["adapter"][name], other["adapter"][name], strict=True)]
    largest = max(abs(p - q) for p, q in pairs)
    if not largest <= TOLERANCE:
        raise ValueError(f"the mean adapters differ by {largest:.3g}, more than {TOLERANCE:g}")
    return f"mean adapters within {largest:.2g} (tolerance {TOLERANCE:g}; {len(pairs)} values); {_outside(one, other)}"


def finished(one: dict, other: dict) -> str:
    """Each side trained its clients, and its adapter moved; the amounts of work differ.

    Raises:
        ValueError: an adapter is still the initial one, whose B is zero.
    """
    for side in (one, other):
        if not any(any(values) for name, values in side["adapter"].items() if "lora_B" in name):
            raise ValueError(f"the adapter of {side['clients']} clients did not change")
    return (
        f"{one['clients']} and {other['clients']} clients trained, different work: only memory compares; "
        + _outside(one, other)
    )


def _outside(one: dict, other: dict) -> str:
    shares = " / ".join(f"{100 * side['outside_training']:.1f} %" for side in (one, other))
    return f"of the round outside training: {shares}"
