"""Load and validate a configuration from a preset, a YAML file and overrides."""

import difflib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard, cast

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fedcollm.config import RunConfig, Section
from fedcollm.config.paths import absolute
from fedcollm.config.yaml_text import as_switch, has_comment, read_yaml, write_yaml
from fedcollm.errors import UserError

#: Endings of files that hold a table of data, and never a configuration.
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".xlsx", ".xls", ".gz", ".zip")

#: First line of a commented configuration.
_HEAD = "# The keys of a section that is null are comments. To set some, remove the null and their # signs."


def preset_names() -> list[str]:
    """Return the names of the configurations that ship with fedcollm."""
    return sorted(file.name.removesuffix(".yaml") for file in _presets().iterdir() if file.name.endswith(".yaml"))


def preset_description(name: str) -> str:
    """Return the description of a preset, which is the comment on its first line."""
    return (_presets() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def load_config(source: str | Path | Mapping[str, Any] = "icd10", **overrides: Any) -> RunConfig:
    """Return a validated configuration.

    Args:
        source: name of a preset, path of a YAML file, or the values as nested dicts.
        overrides: nested dicts (`client={"epochs": 2}`) or dotted keys (`**{"client.epochs": 2}`).

    Raises:
        UserError: the configuration is invalid. The message lists every error, and the nearest valid key for a typo.

    >>> load_config("icd10", **{"federation.rounds": 2}).federation.rounds
    2
    >>> load_config({"name": "mine", "client": {"epochs": 3}}).client.epochs
    3
    """
    own = [] if isinstance(source, Mapping) or str(source) in preset_names() else [Path(source).parent]
    return _validated(source, overrides, [*own, Path.cwd()])


def load_as_typed(source: str | Path | Mapping[str, Any] = "icd10", **overrides: Any) -> RunConfig:
    """Return the same as `load_config`, with paths as they were typed, for a configuration that goes to others."""
    return _validated(source, overrides, [])


def _validated(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any], bases: Sequence[Path]
) -> RunConfig:
    """Return a validated configuration.

    Args:
        source: see `load_config`.
        overrides: see `load_config`.
        bases: the directories that relative paths in the source may be relative to, of which the last is that of paths
            in overrides; empty to leave paths as they are.
    """
    values = dict(source) if isinstance(source, Mapping) else _read(source)
    values = absolute(values, *bases)
    for key, value in overrides.items():
        values = _merged(values, absolute(_nested(key, value), *bases[-1:]))
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        where = "configuration" if isinstance(source, Mapping) else f"configuration {source}"
        raise UserError(f"{where}: {explain(error)}") from error


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Return the overrides in `a.b=c` strings as dotted key to value, which is read as YAML.

    Raises:
        UserError: a string has no key or no `=`, or its value is not valid YAML, or has a comment.

    >>> parse_settings(["client.epochs=2", "llm.layers=null"])
    {'client.epochs': 2, 'llm.layers': None}
    """
    pairs: dict[str, Any] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise UserError(f"--set {setting!r}: write it as key=value, such as --set federation.rounds=2.")
        pairs.pop(key.strip(), None)  # the last one wins, and takes its place in the order
        try:
            pairs[key.strip()] = read_yaml(value)
        except ValueError as error:
            raise UserError(
                f"--set {setting!r}: the value is not valid YAML ({' '.join(str(error).split())[:200]}). Quote text "
                "that has special characters."
            ) from error
        if has_comment(value):
            raise UserError(
                f"--set {setting!r}: a # that is not in quotes begins a comment, so it and what follows would be lost. "
                f"""Write the value in two kinds of quotes: --set '{key.strip()}="{value.strip()}"'."""
            )
    return pairs


def commented_yaml(config: RunConfig) -> str:
    """Return the whole configuration as YAML, in which a comment explains each key."""
    return "\n".join([_HEAD, *_lines(config, "")]) + "\n"


def _presets() -> Any:
    return resources.files("fedcollm.config") / "presets"


def _read(preset_or_path: str | Path) -> dict[str, Any]:
    name = str(preset_or_path)
    if name in preset_names():
        text = (_presets() / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        path = Path(name)
        _check_file(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"configuration {name} can't be read: {error}. Check that it is a UTF-8 file.") from error
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise UserError(f"configuration {name} is not valid YAML: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(
            f"configuration {name} must be a mapping of keys to values, such as `seed: 0`, not {type(values).__name__}"
            + ("" if Path(name).suffix in (".yaml", ".yml") else f". {_for_data(name)}")
        )
    return {"name": Path(name).stem} | cast("dict[str, Any]", values)


def _check_file(name: str) -> None:
    """Refuse what is no file, or a file of data, where a configuration is expected.

    Raises:
        UserError: it is none.
    """
    path = Path(name)
    try:
        is_file, is_directory = path.is_file(), path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or has a null
        is_file = is_directory = False
    if is_directory:
        raise UserError(f"{name} is a directory, and no configuration file. {_for_data(name)}")
    if is_file and any(suffix.lower() in _TABLES for suffix in path.suffixes[-2:]):
        raise UserError(f"{name} is a file of data, and no configuration. {_for_data(name)}")
    if not is_file:
        near = difflib.get_close_matches(name, preset_names(), 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"no preset or configuration file {name!r:.200}.{hint} Presets: {', '.join(preset_names())}.")


def _for_data(name: str) -> str:
    return f"To make a configuration for your data: fedcollm init --data {shlex.quote(name)} > my.yaml"


def _nested(key: str, value: Any) -> dict[str, Any]:
    *sections, last = key.split(".")
    nested: dict[str, Any] = {last: value}
    for section in reversed(sections):
        nested = {section: nested}
    return nested


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    return {**base, **{key: _merged_value(key, base.get(key), value) for key, value in over.items()}}


def _merged_value(key: str, old: Any, new: Any) -> Any:
    """Return the new value of a key: two sections are merged, and `secure_aggregation` may be a bool for short."""
    if key == "secure_aggregation":
        old, new = ({"enabled": v} if isinstance(v, bool) else v for v in (as_switch(old), as_switch(new)))
    if _is_section(new):
        return _merged(old if _is_section(old) else {}, new)
    return new


def _is_section(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


#: Most characters of a value, and most errors, that a message shows: the file may be somebody else's.
_LONGEST_VALUE, _MOST_LINES = 300, 50


def explain(error: ValidationError) -> str:
    """Return one line per validation error: the key, the value, what is wrong, and the nearest valid key for a typo."""
    lines: list[str] = []
    for item in error.errors():
        key = _key(item["loc"]) or "(whole)"
        if item["type"] == "extra_forbidden":
            valid = _fields_at(item["loc"][:-1])
            lines.append(f"{key}: unknown key; {_hint(str(item['loc'][-1]), valid)}")
        elif item["loc"]:
            value = (
                "" if isinstance(item["input"], Mapping) else f"{item['input']!r:.{_LONGEST_VALUE}} is not allowed: "
            )
            lines.append(f"{key}: {value}{item['msg'].removeprefix('Value error, ')}")
        else:
            lines += item["msg"].removeprefix("Value error, ").splitlines()  # one line per refused combination
    more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    return "\n  ".join([f"{len(lines)} error{'s' if len(lines) > 1 else ''}", *lines[:_MOST_LINES], *more])


def _key(location: Sequence[str | int]) -> str:
    """Return the dotted key of a location, without the names that pydantic gives to the kinds of a `layers` value."""
    return ".".join(str(part) for part in location if part not in ("number", "indices"))


def _hint(unknown: str, valid: Sequence[str]) -> str:
    """Return what to write instead of an unknown key: the same name in another section, or the nearest one here.

    Keys of sections that are null by default are suggested only if no other section has such a key.
    """
    for optional in (False, True):
        elsewhere = [key for key in _dotted_keys(RunConfig, optional) if key.rsplit(".", 1)[-1] == unknown]
        if elsewhere:
            return f"did you mean {' or '.join(elsewhere)}?"
    near = difflib.get_close_matches(unknown, valid, 1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"valid keys here: {', '.join(valid)}"


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the section that a field holds, even if it may be null; None if it holds none."""
    kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _dotted_keys(section: type[BaseModel], optional: bool, prefix: str = "") -> Iterator[str]:
    """Yield every key of a section and of the sections in it; without `optional`, not of those that may be null."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        inner = _section_of(field)
        if inner is not None and (optional or field.annotation is inner):
            yield from _dotted_keys(inner, optional, f"{prefix}{name}.")


def _fields_at(location: Iterable[str | int]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in location:
        model = _section_of(model.model_fields[str(part)]) or model
    return list(model.model_fields)


def _lines(section: Section, indent: str) -> list[str]:
    """Return the lines of a section; the keys of a section that is null are comments, with their defaults."""
    lines: list[str] = []
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value, inner = getattr(section, name), _section_of(field)
        if isinstance(value, Section):
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
            continue
        lines.append(indent + _line(name, _flow(plain[name]), field))
        lines += [f"{indent}  # {line}" for line in _defaults(inner)] if inner and value is None else []
    return lines


def _defaults(section: type[BaseModel]) -> Iterator[str]:
    """Yield a line for each key of a section that is null; a key without a default has nothing after its colon."""
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        yield _line(name, "" if field.is_required() else _flow(default), field)


def _line(name: str, value: str, field: FieldInfo) -> str:
    return f"{name}: {value}".rstrip() + (f"  # {field.description}" if field.description else "")


def _flow(value: Any) -> str:
    """Return a plain value as YAML on one line."""
    plain = list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value
    return write_yaml(plain, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
