"""What a run's result may depend on besides its configuration and its data, and how that changed when it went on."""

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch

from fedcollm.config import RunConfig
from fedcollm.models.adapters import resolve_device
from fedcollm.models.quantized import quantization_of
from fedcollm.models.sharded import base_bytes
from fedcollm.runs import directory as directories
from fedcollm.runs.build import Federation

#: Key of `environment.json` that holds what was not the same when the run was resumed.
CHANGES = "changes"


def environment(config: RunConfig, federation: Federation, memory: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a result may depend on besides the configuration, for `environment.json`.

    Args:
        config: the run's configuration.
        federation: the run's parts.
        memory: the memory limit and what was changed for it; empty without a limit.
    """
    packages = ("fedcollm", "torch", "transformers", "peft", "tokenizers", "numpy")
    found = {role: quantization_of(model) for role, model in federation.server.pair.models().items()}
    packed = {role: kind for role, kind in found.items() if kind is not None}
    return {
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
        "device": str(resolve_device(config.device)),
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "threads": torch.get_num_threads(),
        "dtype": federation.dtypes,
        "parameters": federation.parameters,
        "base_bytes": {role: base_bytes(model) for role, model in federation.server.pair.models().items()},
        "healed": dict(federation.healed),
        **({"quantization": packed} if packed else {}),
        **({"memory": dict(memory)} if memory else {}),
    }


def record(directory: Path, now: Mapping[str, Any]) -> None:
    """Write the environment of a run that starts, or what has changed since for one that is resumed.

    `environment.json` holds what the run began with and, under `changes`, one entry per resume with other values: key
    to the new value, None for a key that is gone.

    Raises:
        UserError: the file is damaged, or it can't be written.
    """
    began: dict[str, Any] | None = directories.read_json(directory, directories.ENVIRONMENT)
    if began is None:
        directories.write_json(directory, directories.ENVIRONMENT, dict(now))
        return
    changes: dict[str, dict[str, Any]] = began.pop(CHANGES, {})
    before, after = dict(_flat(began)), dict(_flat(now))
    for change in changes.values():
        before |= change
    new = {key: after.get(key) for key in {**before, **after} if before.get(key) != after.get(key)}
    if new:
        done = [one.round for one in directories.read_records(directory)]
        changes[f"{len(changes) + 1}, after round {max(done, default='none')}"] = new
        directories.write_json(directory, directories.ENVIRONMENT, {**began, CHANGES: changes})


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings, each with its dotted path."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
