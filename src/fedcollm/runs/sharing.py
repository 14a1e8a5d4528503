"""What the runs of a comparison have in common, done once: scores before training, and the clients' round 1.

Each is kept under a digest of all that it depends on, so that it is bit for bit what doing it again would give.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.federation.client import Client
from fedcollm.federation.server import Server, Transport
from fedcollm.messages import Score
from fedcollm.modalities.base import Task
from fedcollm.models.adapters import resolve_device, resolve_dtype
from fedcollm.runs.build_models import VISION_MODELS
from fedcollm.storage import one_at_a_time, write_atomically, writing
from fedcollm.transports.caching import CachingTransport

#: Adapters that change nothing before they are trained.
_NEUTRAL = ("lora", "dora", "ia3")
#: What of a client is no setting of its own, or is looked at otherwise.
_APART = ("task", "slm", "examples", "test", "run", "rounds", "spent", "store")
_PLAIN = (str, int, float, tuple)


def remembering(config: RunConfig, clients: Mapping[str, Client], transport: Transport, shared: Path) -> Transport:
    """The same clients; what they send in round 1 is kept, and taken from there by later runs.

    Args:
        config: of the run.
        clients: id to client, each sending plain updates.
        transport: to them.
        shared: directory of what several runs have in common.
    """
    if not clients or _is_made_by_the_run(config.slm) or config.task.partition.kind == "pooled":
        return transport  # no other run has the same clients
    one = next(iter(clients.values()))
    common = _settings(config, config.slm, one.task, one.test) | {"model": config.slm.model_dump(mode="json")}
    settings = {name: json.dumps(common | {"client": _own_settings(client)}) for name, client in clients.items()}
    return CachingTransport(transport, shared / "round-1", settings)


def _own_settings(client: Client) -> dict[str, str]:
    """Every value of a client but its name for the run, and a digest of its examples."""
    values = {field.name: repr(getattr(client, field.name)) for field in fields(client) if field.name not in _APART}
    return values | {"examples": _digest(client.examples)}


def zero_shot(config: RunConfig, server: Server, shared: Path) -> dict[str, float]:
    """Scores of the server's models before any training: of equal models on equal examples, computed once.

    Args:
        config: of the run.
        server: scored in place, as by its `scores`.
        shared: directory of what several runs have in common.
    """
    for role in server.models():
        model = config.slm if role == "slm" else config.llm
        if _is_made_by_the_run(model) or model.adapter.kind.lower() not in _NEUTRAL or model.adapter.options:
            server.scored[role] = server.score(role)
            continue
        settings = json.dumps(_settings(config, model, server.task_of(role), server.test))
        file = shared / "round-0" / f"{hashlib.sha256(settings.encode()).hexdigest()}.json"
        with one_at_a_time(file):
            if not file.exists():
                score = server.score(role)
                with writing(file.parent):
                    write_atomically(file, _score_to_json(score))
            server.scored[role] = _score_from_json(file.read_text(encoding="utf-8"))
    return {role: score.value for role, score in server.scored.items()}


def _is_made_by_the_run(model: ModelConfig) -> bool:
    """Whether the base itself depends on the run: its seed, its public part."""
    return bool(model.pretrain_epochs) or model.source in VISION_MODELS


def _settings(config: RunConfig, model: ModelConfig, task: Task, test: Iterable[Any]) -> dict[str, Any]:
    """What a base model's scores on the test examples depend on, down to the machine's order of summation."""
    device = resolve_device(config.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    dtypes = [str(resolve_dtype(one.dtype, device)) for one in (model, config.slm, config.llm)]
    base: Mapping[str, Any] = model.model_dump(mode="json", exclude={"adapter"})
    return {
        "base": base | {"kind": model.adapter.kind.lower(), "targets": model.adapter.targets},
        "machine": [torch.__version__, torch.get_num_threads(), str(device), name, *dtypes],
        "task": {name: repr(value) for name, value in vars(task).items() if isinstance(value, _PLAIN)},
        "tokenizer": getattr(getattr(task, "tokenizer", None), "name_or_path", None),
        "scoring": [config.evaluation.batch_size, _digest(test)],
    }


def _digest(examples: Iterable[Any]) -> str:
    """SHA-256 of all that examples hold, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([str(example), example.content]).encode())
    return digest.hexdigest()


def _score_to_json(score: Score) -> str:
    confusion = [[*pair, count] for pair, count in score.confusion.items()]
    return json.dumps({"sums": score.sums, "count": score.count, "confusion": confusion, "outcomes": score.outcomes})


def _score_from_json(text: str) -> Score:
    values = json.loads(text)
    confusion = {(true, predicted): count for true, predicted, count in values.pop("confusion")}
    return Score(confusion=confusion, **values)
