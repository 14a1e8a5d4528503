"""What the runs of a comparison have in common, done once: scores before training, and the clients' round 1.

Each is kept under a digest of all that it depends on, so that it is bit for bit what doing it again would give. The
digest holds the whole configuration except the keys that are listed here as without influence: a key that is added
later is part of it until somebody shows otherwise.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.federation.client import Client
from fedcollm.federation.server import Server, Transport
from fedcollm.messages import Score
from fedcollm.modalities.base import Modality
from fedcollm.models.adapters import resolve_device, resolve_dtype
from fedcollm.storage import one_at_a_time, write_atomically, writing
from fedcollm.transports.caching import CachingTransport

#: Adapters that change nothing before they are trained.
_NEUTRAL = ("lora", "dora", "ia3")

#: Keys without influence on a client's update in round 1: of the other model, of the server, of later rounds, and of
#: the data, which is part of the digest itself.
WITHOUT_INFLUENCE_ON_ROUND_1: Mapping[str, Any] = {
    "name": True,
    "log_steps": True,
    "task": True,
    "llm": True,
    "server": True,
    "federation": {
        "rounds",
        "fraction",
        "participants",
        "aggregation",
        "server_optimizer",
        "min_clients",
        "deadlines",
        "max_update_norm",
        "secure_aggregation",
        "privacy",
    },
    "client": {"personal", "ranks"},  # a client's own rank is part of its agreement
    "evaluation": {"every", "clients"},  # whether a score is asked for is part of the request
}


def with_cache(config: RunConfig, clients: Mapping[str, Client], transport: Transport, shared: Path) -> Transport:
    """Return a way to the same clients that keeps what they send in round 1, and takes it from there in later runs.

    Args:
        config: of the run.
        clients: id to client, each sending plain updates.
        transport: to them.
        shared: directory of what several runs have in common.
    """
    if not clients or config.task.partition.kind == "pooled":
        return transport  # no other run has the same clients
    one = next(iter(clients.values()))
    if _is_made_by_the_run(config.slm, one.modality):
        return transport
    common = round_1_settings(config) | _environment(config, config.slm, one.modality)
    settings = {
        name: common
        | {
            "client": name,
            "rank": client.agreement.upload.rank,
            "examples": _digest(client.examples),
            "test": _digest(client.test),
        }
        for name, client in clients.items()
    }
    return CachingTransport(transport, shared / "round-1", settings)


def round_1_settings(config: RunConfig) -> dict[str, Any]:
    """Return the part of a configuration that a client's update in round 1 depends on."""
    return {"configuration": config.model_dump(mode="json", exclude=dict(WITHOUT_INFLUENCE_ON_ROUND_1))}


def zero_shot(config: RunConfig, server: Server, shared: Path) -> dict[str, float]:
    """Return the scores of the server's models before any training: of equal models on equal examples, computed once.

    Args:
        config: of the run.
        server: scored in place, as by its `scores`.
        shared: directory of what several runs have in common.
    """
    for role in server.pair.models():
        model, modality = config.slm if role == "slm" else config.llm, server.pair.modality.of(role)
        neutral = model.adapter.kind.lower() in _NEUTRAL and not model.adapter.options
        if _is_made_by_the_run(model, modality) or not neutral:
            server.scored[role] = server.score(role)
            continue
        settings = _environment(config, model, modality) | {
            "base": model.model_dump(mode="json", exclude={"adapter"}),
            "adapter": [model.adapter.kind.lower(), model.adapter.targets],  # what rounding it changes
            "scoring": [config.evaluation.batch_size, _digest(server.test)],
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        file = shared / "round-0" / f"{digest}.json"
        with one_at_a_time(file):
            if not file.exists():
                score = server.score(role)
                with writing(file.parent):
                    write_atomically(file, _score_to_json(score))
            server.scored[role] = _score_from_json(file.read_text(encoding="utf-8"))
    return {role: score.value for role, score in server.scored.items()}


def _is_made_by_the_run(model: ModelConfig, modality: Modality) -> bool:
    """Return whether the base itself depends on the run: its seed, its public part."""
    return bool(model.pretrain_epochs) or not modality.is_pretrained(model)


def _environment(config: RunConfig, model: ModelConfig, modality: Modality) -> dict[str, Any]:
    """Return what results depend on beside configuration and data, down to the machine's order of summation."""
    device = resolve_device(config.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    dtypes = [str(resolve_dtype(one.dtype, device)) for one in (model, config.slm, config.llm)]
    return {
        "machine": [torch.__version__, torch.get_num_threads(), str(device), name, *dtypes],
        "modality": [type(modality).__name__, modality.to_wire()],
    }


def _digest(examples: Iterable[Any]) -> str:
    """Return the SHA-256 of all that examples hold, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(_plain(example), sort_keys=True).encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: data classes field by field, tensors with all their bytes.

    Raises:
        TypeError: it is something else; give it a method `to_wire` that returns plain values.
    """
    if hasattr(value, "to_wire"):
        return value.to_wire()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return [str(value.dtype), list(value.shape), hashlib.sha256(data).hexdigest()]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a {type(value).__name__} has no plain form: give it a method to_wire that returns plain values")


def _score_to_json(score: Score) -> str:
    confusion = [[*pair, count] for pair, count in score.confusion.items()]
    return json.dumps({"sums": score.sums, "count": score.count, "confusion": confusion, "outcomes": score.outcomes})


def _score_from_json(text: str) -> Score:
    values = json.loads(text)
    confusion = {(true, predicted): count for true, predicted, count in values.pop("confusion")}
    return Score(confusion=confusion, **values)
