"""Start from an adapter that somebody has trained before, in PEFT's own format."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors.torch
from safetensors import SafetensorError

from fedcollm.config import AdapterConfig
from fedcollm.errors import SECTION, UserError
from fedcollm.messages import Adapter, not_finite
from fedcollm.models.peft_config import peft_config
from fedcollm.progress import say
from fedcollm.storage import make_directory, replacing_directory

if TYPE_CHECKING:
    import peft

#: The files of an adapter in PEFT's format.
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

#: Fields of PEFT's configurations that say nothing about what trained tensors compute. Where tensors are is checked by
#: their names.
# fmt: off
_INCIDENTAL = frozenset({
    "auto_mapping", "arrow_config", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "init_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
    "module_dropout", "modules_to_save", "peft_version", "revision", "runtime_config", "target_modules", "task_type",
})
# fmt: on

#: Initial values that change the base, so that the adapter alone is not what was trained.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

#: Field of PEFT to our key.
_KEYS = {"peft_type": "kind", "r": "rank", "lora_alpha": "alpha"}


def check_start(section: AdapterConfig, expected: Mapping[str, Any]) -> Adapter:
    """Return the tensors that an adapter starts from, after checking that they fit.

    Args:
        section: the adapter's configuration, with `start`.
        expected: the tensors that the model has by name, which may be on torch's `meta` device; with `freeze_a`, A may
            be missing.

    Raises:
        UserError: the directory holds no adapter in safetensors, or one that differs from the configuration or does not
            fit the model, or has a NaN or infinite value.
    """
    directory = _directory(section)
    _check_settings(section, _settings(directory), directory)
    state = _tensors(directory)
    shapes, wanted = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (state, expected))
    free = {name for name in shapes if section.freeze_a and "lora_A" in name and name not in wanted}
    if odd := sorted(n for n in (shapes.keys() | wanted.keys()) - free if shapes.get(n) != wanted.get(n)):
        there, here = shapes.get(odd[0], "missing"), wanted.get(odd[0], "missing")
        raise UserError(
            f"{SECTION}adapter.start: the adapter in {directory} does not fit the model: tensor {odd[0]} is {there} "
            f"in the file and {here} in the model ({len(odd)} tensors differ). Its targets are "
            f"{', '.join(_targets(state))}. Give an adapter of this base, with the same {SECTION}adapter.targets and "
            f"{SECTION}layers."
        )
    if name := not_finite(state):
        raise UserError(
            f"{SECTION}adapter.start: tensor {name} in {directory} has a NaN or infinite value. Give another adapter."
        )
    return state


def warm_start(model: "peft.PeftModel", section: AdapterConfig, kept: Path) -> None:
    """Set a model's adapter to that of `adapter.start`, and keep a copy of it for a resumed run.

    Args:
        model: the model, before any training.
        section: the adapter's configuration, with `start`.
        kept: directory of the copy; if it exists, it is used instead of `start`.

    Raises:
        UserError: as in `check_start`.
    """
    import peft

    library = cast(Any, peft)  # has no complete type annotations
    section = section.model_copy(update={"start": kept}) if kept.is_dir() else section
    state = check_start(section, library.get_peft_model_state_dict(model, save_embedding_layers=False))
    library.set_peft_model_state_dict(model, state)
    if kept.is_dir():
        return
    directory = _directory(section)
    if note := other_base(section, str(cast(Any, model).peft_config["default"].base_model_name_or_path)):
        say(note)
    make_directory(kept.parent)
    with replacing_directory(kept) as temporary:
        for file in (CONFIG, WEIGHTS):
            shutil.copyfile(directory / file, temporary / file)


def other_base(section: AdapterConfig, *bases: str) -> str | None:
    """Return a note if an adapter's file names another base than the one that it will be on; else None.

    Args:
        section: the adapter's configuration, with `start`.
        bases: the names that the base goes by, the best one first.

    Raises:
        UserError: the directory holds no adapter.
    """
    directory = _directory(section)
    if (named := _settings(directory).get("base_model_name_or_path")) in (None, "", *bases):
        return None
    return (
        f"adapter.start: {directory} says that it was trained on {named}; here, its base is {bases[0]}. If these are "
        "not the same model, give an adapter of this base, or change the source"
    )


def _directory(section: AdapterConfig) -> Path:
    """Return the directory of the adapter.

    Raises:
        UserError: it lacks a file that is needed.
    """
    if section.start is None:
        raise ValueError("the section has no start")
    directory = section.start.expanduser()
    for file in (CONFIG, WEIGHTS):
        if not (directory / file).is_file():
            raise UserError(f"{SECTION}adapter.start: {directory} {_missing(directory, file)}")
    return directory


def _missing(directory: Path, file: str) -> str:
    if not directory.exists():
        return "does not exist. Give the directory of a PEFT adapter."
    if file == WEIGHTS and (directory / "adapter_model.bin").is_file():
        return (
            "has adapter_model.bin, a pickle, which could run any code and is never read. Load it where you trust it, "
            "and save it again with save_pretrained, which writes adapter_model.safetensors."
        )
    inner = sorted(directory.glob(f"*/{CONFIG}")) + sorted(directory.glob(f"adapters/*/{CONFIG}"))
    hint = f", such as {inner[0].parent}" if inner else ""
    return f"has no {file}. Give the directory of a PEFT adapter{hint}."


def _settings(directory: Path) -> dict[str, Any]:
    try:
        values: Any = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{SECTION}adapter.start: {directory / CONFIG} can't be read: {error}. Restore it from a copy."
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{SECTION}adapter.start: {directory / CONFIG} holds no JSON object. Restore it from a copy.")
    return cast(dict[str, Any], values)


def _tensors(directory: Path) -> Adapter:
    try:
        return cast(Any, safetensors.torch).load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{SECTION}adapter.start: {directory / WEIGHTS} can't be read: {error}. Restore it from a copy."
        ) from error


def _check_settings(section: AdapterConfig, theirs: Mapping[str, Any], directory: Path) -> None:
    """Refuse an adapter of another kind, rank, alpha or other setting than the configuration says."""
    initial = str(theirs.get("init_lora_weights")).lower()
    if initial.startswith(_CHANGES_BASE):
        raise UserError(
            f"{SECTION}adapter.start: the adapter in {directory} began with init_lora_weights {initial}, which changed "
            "its base, so it does not fit the base as it is. Convert it to plain LoRA when it is saved "
            "(path_initial_model_for_weight_conversion)."
        )
    config = peft_config(section)
    ours: dict[str, Any] = config.to_dict()
    names = [name for name in ours if name not in _INCIDENTAL]
    if "peft_type" not in theirs or _plain(theirs["peft_type"]) != _plain(ours["peft_type"]):
        names = ["peft_type"]  # another kind has other settings
    else:
        theirs = {**_defaults(config), **theirs}  # as PEFT reads a file without a key
    there, here = ({name: _plain(values.get(name)) for name in names} for values in (theirs, ours))
    if odd := [name for name in names if there[name] != here[name]]:
        said = [
            f"{_KEYS.get(name, f'options.{name}')} is {there[name]} there, and {here[name]} in the configuration"
            for name in odd
        ]
        raise UserError(
            f"{SECTION}adapter.start: the adapter in {directory} has other settings than {SECTION}adapter: "
            f"{'; '.join(said)}. Set the keys of {SECTION}adapter to what the adapter has."
        )


def _defaults(config: Any) -> dict[str, Any]:
    """Return the values of the fields of a configuration of PEFT that are not given."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    plain = {name: field.default for name, field in fields.items() if field.default is not dataclasses.MISSING}
    made = {n: f.default_factory() for n, f in fields.items() if f.default_factory is not dataclasses.MISSING}
    return plain | made


def _targets(state: Adapter) -> list[str]:
    """Return the last part of the names of the modules that an adapter is on."""
    return sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in state})


def _plain(value: Any) -> Any:
    """Return a setting in a form in which equal ones are equal: no difference between empty, false and missing."""
    if isinstance(value, (set, frozenset, list, tuple)):
        return sorted(map(str, cast(list[Any], value))) or None
    return getattr(value, "value", value) or None
