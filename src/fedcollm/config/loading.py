"""From presets, YAML files and overrides to a checked configuration."""

import difflib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fedcollm.config import RunConfig, Section
from fedcollm.errors import UserError


def preset_names() -> list[str]:
    """Names of the configurations that ship with fedcollm."""
    return sorted(file.name.removesuffix(".yaml") for file in _presets().iterdir() if file.name.endswith(".yaml"))


def preset_description(name: str) -> str:
    """The comment on a preset's first line."""
    return (_presets() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def load_config(source: str | Path | Mapping[str, Any] = "icd10", **overrides: Any) -> RunConfig:
    """Return a checked configuration.

    Args:
        source: a preset's name, a YAML file, or the values themselves as nested dicts.
        overrides: nested dicts (`client={"epochs": 2}`) or dotted keys (`**{"client.epochs": 2}`).

    Raises:
        UserError: lists everything that is wrong, with the nearest valid key.

    >>> load_config("icd10", **{"federation.rounds": 2}).federation.rounds
    2
    >>> load_config({"name": "mine", "client": {"epochs": 3}}).client.epochs
    3
    """
    values = dict(source) if isinstance(source, Mapping) else _read(source)
    for key, value in overrides.items():
        values = _merged(values, _nested(key, value))
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        where = "configuration" if isinstance(source, Mapping) else f"configuration {source}"
        raise UserError(f"{where}: {explain(error)}") from error


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """`a.b=c` strings, values read as YAML, to dotted overrides.

    >>> parse_settings(["client.epochs=2", "llm.layers=null"])
    {'client.epochs': 2, 'llm.layers': None}
    """
    pairs = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise UserError(f"--set {setting!r}: write it as key=value, such as --set federation.rounds=2")
        try:
            pairs[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {setting!r}: the value is not valid YAML") from error
    return pairs


def commented_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML, with a comment a key that has a docstring."""
    return "\n".join(_lines(config, "")) + "\n"


def _presets() -> Any:
    return resources.files("fedcollm.config") / "presets"


def _read(preset_or_path: str | Path) -> dict[str, Any]:
    name = str(preset_or_path)
    if name in preset_names():
        text = (_presets() / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        path = Path(name)
        if not path.is_file():
            near = difflib.get_close_matches(name, preset_names(), 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"no preset or configuration file {name!r}.{hint} Presets: {', '.join(preset_names())}")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"configuration {name} can't be read: {error}") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"configuration {name} is not valid YAML: {error}") from error
    if not isinstance(values, dict | None):
        raise UserError(f"configuration {name} must be a mapping of keys, not {type(values).__name__}")
    return values or {}


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(value, Mapping):
            old = {"enabled": old} if isinstance(old, bool) else old  # the short form of `secure_aggregation`
            value = _merged(old if isinstance(old, Mapping) else {}, value)
        elif isinstance(value, bool) and isinstance(old, Mapping):
            value = dict(old) | {"enabled": value}
        result[key] = value
    return result


def explain(error: ValidationError) -> str:
    """Every error on a line: key, value, what is wrong, and the nearest valid key."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(whole)"
        if item["type"] == "extra_forbidden":
            valid = _fields_at(item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), valid, 1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys here: {', '.join(valid)}"
            lines.append(f"{key}: unknown key; {hint}")
        elif item["loc"]:
            lines.append(f"{key}: {item['input']!r} is not allowed: {item['msg'].removeprefix('Value error, ')}")
        else:
            lines.append(item["msg"].removeprefix("Value error, "))
    return "\n  ".join([f"{len(lines)} error{'s' if len(lines) > 1 else ''}", *lines])


def _fields_at(location: Iterable[str | int]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        choices = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)


def _lines(section: Section, indent: str) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
            continue
        plain = section.model_dump(mode="json")[name]
        text = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
        lines.append(f"{indent}{name}: {text}" + (f"  # {field.description}" if field.description else ""))
    return lines
