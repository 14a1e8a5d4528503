"""A cache of what the runs of a comparison have in common: the scores before training and the clients' round 1.

Each entry is stored under a digest of everything that it depends on, so that it is bit for bit what a run would compute
itself. The digest covers the whole configuration except the keys that are listed here as irrelevant. A key that is
added later therefore counts until somebody lists it here.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.federation.client import Client
from fedcollm.federation.cohort import Transport
from fedcollm.federation.server import Server
from fedcollm.messages import Score
from fedcollm.modalities.base import Modality
from fedcollm.models.adapters import resolve_device, resolve_dtype
from fedcollm.runs.identity import digest_of
from fedcollm.storage import one_at_a_time, write_atomically, writing
from fedcollm.transports.caching import CachingTransport

#: Kinds of adapters that leave the base's outputs unchanged until they are trained.
_NEUTRAL = ("lora", "dora", "ia3")

#: Keys that do not change a client's update in round 1. They belong to the LLM, to the server, to later rounds, or to
#: the data, whose own digest is part of the key.
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
        "faulty",
        "clip_to_median",
        "max_drop",
        "server_optimizer",
        "min_clients",
        "deadlines",
        "max_update_norm",  # the client's own limits are added from its agreement
        "max_adapter_value",
        "max_adapter_norm",
        "max_loss",
        "secure_aggregation",
        "profile",
        "privacy",
    },
    "client": {"personal", "ranks"},  # the client's own rank is added from its agreement
    "evaluation": {"every", "clients"},  # the request says whether the client is to score its SLM
}


def with_cache(config: RunConfig, clients: Mapping[str, Client], transport: Transport, shared: Path) -> Transport:
    """Return a transport that caches the clients' updates of round 1, so that later runs need not train them again.

    Args:
        config: the run's configuration.
        clients: client id to client; all of them must send plain updates.
        transport: the transport that reaches these clients.
        shared: directory of results that several runs have in common.

    Returns:
        `transport` itself if no other run can have the same updates.
    """
    if not clients or config.task.partition.kind == "pooled":  # no other run has the same clients
        return transport
    one = next(iter(clients.values()))
    if _base_depends_on_run(config.slm, one.modality):
        return transport
    common = round_1_settings(config) | _environment(config, config.slm, one.modality)
    settings = {
        name: common
        | {
            "client": name,
            "rank": client.agreement.upload.rank,
            "limits": asdict(client.agreement.limits),
            "augmentation": _plain_augmentation(client),
            "examples": digest_of(client.examples),
            "test": digest_of(client.test),
        }
        for name, client in clients.items()
    }
    return CachingTransport(transport, shared / "round-1", settings)


def _plain_augmentation(client: Client) -> dict[str, Any] | None:
    """Return a client's augmentations with their kinds named, which can depend on the task."""
    section = client.settings.augmentation
    return None if section is None else section.model_dump(mode="json")


def round_1_settings(config: RunConfig) -> dict[str, Any]:
    """Return the part of a configuration that a client's update in round 1 depends on."""
    return {"configuration": config.model_dump(mode="json", exclude=dict(WITHOUT_INFLUENCE_ON_ROUND_1))}


def zero_shot(config: RunConfig, server: Server, shared: Path) -> dict[str, float]:
    """Return the scores of the server's models before any training; take them from the cache where possible.

    Args:
        config: the run's configuration.
        server: the server; its attribute `scored` is filled, as its method `scores` would do.
        shared: directory of results that several runs have in common.

    Returns:
        Role to the mean of the main metric.
    """
    for role in server.pair.models():
        model, modality = config.slm if role == "slm" else config.llm, server.pair.modality.of(role)
        neutral = model.adapter.kind.lower() in _NEUTRAL and not model.adapter.options and model.adapter.start is None
        if _base_depends_on_run(model, modality) or not neutral:
            server.scored[role] = server.score(role)
            continue
        settings = _environment(config, model, modality) | {
            "base": model.model_dump(mode="json", exclude={"adapter"}),
            "adapter": [
                model.adapter.kind.lower(),
                model.adapter.targets,
            ],  # an untrained adapter still changes the rounding
            "scoring": [config.evaluation.batch_size, digest_of(server.test)],
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


def _base_depends_on_run(model: ModelConfig, modality: Modality) -> bool:
    """Return whether the weights of the base depend on the run's seed or on its public examples."""
    return bool(model.pretrain_epochs) or not modality.is_pretrained(model)


def _environment(config: RunConfig, model: ModelConfig, modality: Modality) -> dict[str, Any]:
    """Return what results depend on besides configuration and data: versions, hardware, threads, dtypes, modality."""
    device = resolve_device(config.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    dtypes = [str(resolve_dtype(one.dtype, device)) for one in (model, config.slm, config.llm)]
    return {
        "machine": [torch.get_num_threads(), str(device), name, *dtypes],
        "versions": {package: metadata.version(package) for package in ("fedcollm", "torch", "transformers", "peft")},
        "files": _files(model.source) + (_files(str(model.adapter.start)) if model.adapter.start else []),
        "modality": [type(modality).__name__, modality.to_wire()],
    }


def _files(source: str) -> list[tuple[str, int, int]]:
    """Return name, size and time of change of the files of a base model on disk; a hub id has none."""
    place = Path(source)
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


def _score_to_json(score: Score) -> str:
    confusion = [[*pair, count] for pair, count in score.confusion.items()]
    sums, counts = dict(score.sums), dict(score.counts)
    values = {"sums": sums, "count": score.count, "confusion": confusion, "outcomes": score.outcomes, "counts": counts}
    return json.dumps(values)


def _score_from_json(text: str) -> Score:
    values = json.loads(text)
    confusion = {(true, predicted): count for true, predicted, count in values.pop("confusion")}
    return Score(confusion=confusion, **values)
