"""What a run was made of: digests of its examples, its data files and its base weights.

They are written into the run directory, so that a run is neither continued nor scored with anything else unnoticed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fedcollm.config import RunConfig, TaskConfig
from fedcollm.data.parts import data_files
from fedcollm.data.pool import Split
from fedcollm.errors import UserError
from fedcollm.models.made import NETWORK
from fedcollm.models.quantized import quantization_of
from fedcollm.models.warm_start import WEIGHTS
from fedcollm.runs import directory as directories
from fedcollm.training.distillation import ModelPair

#: Keys of a network's configuration that do not change what it computes.
_INCIDENTAL = ("transformers_version", "dtype", "torch_dtype", "architectures", "name_or_path")

#: PEFT's name of the only adapter, a part of which may be frozen.
_ADAPTER = "default"

#: What a run is made of, under a name for messages, to its digest; None where none can be computed.
Identity = dict[str, str | None]

#: The form of `identity.json`: what the run began with, then what was accepted instead.
_ENTRIES = TypeAdapter(Annotated[list[Annotated[Identity, Field(min_length=1)]], Field(min_length=1)])


def identity_of(task: TaskConfig, split: Split, pair: ModelPair, directory: Path) -> Identity:
    """Return the digests of what a run is made of.

    Args:
        task: the section that names the data.
        split: the run's examples; those of clients on other machines are not in it.
        pair: the run's models.
        directory: the run directory, which has a copy of what an adapter started from.
    """
    parts = {"public": split.public, "test": split.test} | {f"client {k}": part for k, part in split.private.items()}
    files = {f"file {file}": _file_digest(file) for file in _data_files(task.path)}
    examples = {f"examples: {name}": _digest_or_none(part) for name, part in parts.items()}
    bases = dict(base for role, model in pair.models().items() for base in base_digests(role, model))
    read = {
        f"preprocessing of {role}": _plain_digest(_placeless(pair.modality.of(role).to_wire()))
        for role in pair.models()
    }
    starts = {role: directory / "base" / f"{role}-start" / WEIGHTS for role in pair.models()}
    began = {f"start of {role}": _file_digest(file) for role, file in starts.items() if file.is_file()}
    return {**files, **examples, **bases, **read, **began}


def check(directory: Path, config: RunConfig, now: Identity) -> None:
    """Refuse what a run was not made of. Base weights of another dtype, as another machine may choose, are let through.

    Args:
        directory: the run directory; one without digests is let through.
        config: the run's configuration.
        now: the digests of what there is now.

    Raises:
        UserError: something is not the same.
    """
    before = _latest(_entries(directory))
    changed = [name for name, digest in now.items() if name in before and before[name] != digest]
    if changed:
        raise UserError(
            f"{directory}: this run began with something else than there is now: {', '.join(changed)} "
            f"({_sources(config, changed)}). Restore it, start a new run in another directory, or give "
            "--accept-changed-data to go on with what there is."
        )


def record(directory: Path, now: Identity) -> None:
    """Write the digests of what a run is made of, after those of before if they are not the same."""
    known = _entries(directory)
    before = _latest(known)
    if any(name not in before or before[name] != digest for name, digest in now.items()):
        directories.write_json(directory, directories.IDENTITY, [*known, now])


def recorded(directory: Path, role: str) -> dict[str, str]:
    """Return the digests of a role's base that a run recorded last, under the names that `base_digests` gives them."""
    bases = (f"configuration of {role}", f"weights of {role} in ")
    known = _latest(_entries(directory))
    return {name: digest for name, digest in known.items() if digest is not None and name.startswith(bases)}


def _latest(known: Iterable[Identity]) -> Identity:
    """Return the latest digest of each name."""
    return {name: digest for one in known for name, digest in one.items()}


def _entries(directory: Path) -> list[Identity]:
    """Return what a run recorded; nothing if it has no record.

    Raises:
        UserError: the record is damaged.
    """
    file = directory / directories.IDENTITY
    if not file.is_file():
        return []
    try:
        return _ENTRIES.validate_json(file.read_bytes(), strict=True)
    except ValueError as error:
        raise UserError(
            f"{file} is damaged, so nobody can say whether the run's data and base models are still the same. Restore "
            "it, or delete it if you know that they are."
        ) from error


def _sources(config: RunConfig, changed: Iterable[str]) -> str:
    """Return the keys of the configuration that name what changed, with their values."""
    keys = {"slm": f"slm.source: {config.slm.source}", "llm": f"llm.source: {config.llm.source}"}
    task = f"task.path: {config.task.path}" if config.task.path else f"task.name: {config.task.name}"
    named = (keys.get(_role(name), task) for name in changed)
    return ", ".join(dict.fromkeys(named))


def _role(name: str) -> str:
    """Return the role whose model a name is about.

    >>> _role("weights of slm in float32"), _role("preprocessing of llm"), _role("examples: public")
    ('slm', 'llm', '')
    """
    return name.partition(" of ")[2].partition(" ")[0]


def _data_files(path: Path | None) -> Iterator[Path]:
    """Yield the tables of a user's data; images and recordings that they name count as examples."""
    yield from () if path is None else data_files(path)


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _placeless(value: Any) -> Any:
    """Return a value without the names of the places that models were read from: a cache may have moved."""
    if not isinstance(value, Mapping):
        return value
    items = cast(Mapping[str, Any], value).items()
    return {name: _placeless(item) for name, item in items if name not in ("tokenizer", "source")}


def _plain_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def _digest_or_none(examples: Iterable[Any]) -> str | None:
    """Return the digest of examples; None if those of somebody's own modality have no plain form."""
    try:
        return digest_of(examples)
    except TypeError:
        return None


def base_digests(role: str, model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield names and digests of the configuration and the frozen weights of a model, if it has these."""
    if (spread := getattr(model, "spread", None)) is not None:  # no process has the weights any more
        yield from spread.digests.items()
        return
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = model.state_dict().items()
    frozen = {name: tensor for name, tensor in state if name not in trained and _ADAPTER not in name.split(".")}
    if (shape := getattr(model, "config", None)) is not None and hasattr(shape, "to_dict"):
        kept = {name: value for name, value in shape.to_dict().items() if name not in _INCIDENTAL and name[:1] != "_"}
        yield f"configuration of {role}", _plain_digest(json.loads(json.dumps(kept, default=str)))
    if frozen:
        dtype = quantization_of(model) or str(next(iter(frozen.values())).dtype).removeprefix("torch.")
        yield f"weights of {role} in {dtype}", _plain_digest(frozen)


def stored_digests(directory: Path) -> dict[str, str]:
    """Return the digests of the configuration and of the weights in a base's directory, whatever dtype they have.

    Weights are read from safetensors, tensor by tensor, so that neither shards nor metadata count; weights in
    another format count as files.

    Raises:
        UserError: a file can't be read, or there are no weights.
    """
    try:
        digests = {"configuration": _plain_digest(_settings(directory))}
        tensors = dict(_tensor_digests(_weight_files(directory)))
        found = tensors or {file.name: _file_digest(file) for file in sorted(directory.glob("*.bin"))}
    except (OSError, ValueError, LookupError, AttributeError, SafetensorError) as error:
        raise UserError(f"{directory} can't be read ({error}). Restore it from a copy.") from error
    if not found:
        raise UserError(f"{directory} holds no weights (.safetensors). Give the directory of a model.")
    return digests | {"weights": _plain_digest(found)}


def _weight_files(directory: Path) -> list[Path]:
    """Return the files of safetensors that are loaded from a base's directory; others beside them do not count."""
    index, whole = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if whole.is_file():
        return [whole]
    if index.is_file():
        named: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return [directory / name for name in sorted(set(named.values()))]
    return sorted(directory.glob("*.safetensors"))


def _settings(directory: Path) -> Any:
    """Return what the files of a base's directory say of its network."""
    read: list[Any] = []
    for name in ("config.json", NETWORK):
        if (file := directory / name).is_file():
            value = json.loads(file.read_text(encoding="utf-8"))
            read.append({key: one for key, one in value.items() if key not in _INCIDENTAL and key[:1] != "_"})
    return read


def _tensor_digests(files: Iterable[Path]) -> Iterator[tuple[str, Any]]:
    for file in files:
        with cast(Any, safe_open)(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                yield name, _plain(stored.get_tensor(name))


def digest_of(examples: Iterable[Any]) -> str:
    """Return the SHA-256, in hexadecimal, of the content of the examples in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(_plain(example), sort_keys=True).encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Return a value in a form that JSON can hold: data classes as their fields, tensors as a digest of their bytes.

    Raises:
        TypeError: the value is of a type that has no such form and no method `to_wire`.
    """
    if hasattr(value, "to_wire"):
        return value.to_wire()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return [str(value.dtype), list(value.shape), hashlib.sha256(data).hexdigest()]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast(list[Any] | tuple[Any, ...], value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a {type(value).__name__} has no plain form: give it a method to_wire that returns plain values")
