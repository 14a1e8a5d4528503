"""The command `fedcollm shrink`: a small model out of a large one, healed on public text."""

import dataclasses
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fedcollm.cli.options import Json, Quiet, argument, option
from fedcollm.errors import UserError

if TYPE_CHECKING:
    from fedcollm.config import ModelConfig

#: The keys of a model's section that `--set` may change: those that say what becomes of the base.
_KEYS = ("layer_choice", "mlp_share", "heal")

_OUT = (
    "--out {directory} can't be written: {error}. Choose another directory; a model that is healed stays in the cache."
)


def shrink(
    source: Annotated[str, argument(metavar="MODEL", help="hub id, directory, .gguf file or shipped model")],
    out: Annotated[Path, option("--out", help="directory for the new model, which must not exist yet")],
    layers: Annotated[str, option("--layers", help="how many to keep, their indices such as 0,1,5, or all")] = "10",
    settings: Annotated[
        list[str] | None,
        option("--set", metavar="a=b", help="another key of the section slm: layer_choice=block, heal.size=4800, ..."),
    ] = None,
    task: Annotated[str | None, option("--task", help="score all three models zero-shot on this preset")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cut a language model and heal it on public text; say what it lost. Ctrl-C is safe: the same command continues."""
    from fedcollm.cli.tables import shrink_table
    from fedcollm.cli.terminal import interruptible, output, screen
    from fedcollm.config.loading import load_config
    from fedcollm.models.adapters import resolve_device
    from fedcollm.progress import shown
    from fedcollm.runs.shrink import shrink_report, shrunk
    from fedcollm.runs.shrink_scores import load_examples, zero_shot
    from fedcollm.storage import writing

    with writing(out, _OUT):
        _check_new(out)
    section, config = _section(source, layers, settings or []), load_config(task or "icd10")
    with shown(screen(quiet or as_json)), interruptible("the same command", "The finished steps are saved"):
        examples = load_examples(config) if task else None
        made = Path(shrunk(section, resolve_device(config.device)).source)
        report = shrink_report(made)
        scores = {} if examples is None else zero_shot(config, examples, source, made)
    with writing(out, _OUT):
        _copy(made, out)
    if as_json:
        print(json.dumps(dataclasses.asdict(report) | {"scores": scores, "directory": str(out)}))
    elif not quiet:
        output().print(shrink_table(report, scores))
        print(f"use it with: --set slm.source={out.resolve()} --set slm.layers=null --set slm.heal=null")


def _check_new(out: Path) -> None:
    """Make the parent of a directory that does not exist yet.

    Raises:
        OSError: it can't be made.
        UserError: the directory exists.
    """
    if out.exists():
        raise UserError(f"--out: {out} exists already. Choose another directory.")
    from fedcollm.storage import make_directory

    make_directory(out.parent)


def _copy(made: Path, out: Path) -> None:
    """Copy a directory so that it is there as a whole or not at all."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        shutil.copytree(made, Path(temporary) / out.name).rename(out)


def _section(source: str, layers: str, settings: list[str]) -> "ModelConfig":
    """Return the section of the new model: healed with the default settings, unless others are given.

    Raises:
        UserError: a setting is none of the new model, or has a value that is not allowed.
    """
    from fedcollm.config.loading import load_config, parse_settings

    given = parse_settings(settings)
    own: dict[str, Any] = {"slm.source": source, "slm.layers": _parsed(layers), "slm.heal": {}}
    for key, value in given.items():
        if key.split(".")[0] not in _KEYS:
            raise UserError(
                f"--set {key}: shrink has no such setting. There are {', '.join(_KEYS)} and the keys of heal."
            )
        if key == "heal" and value is None:
            raise UserError("--set heal=null: shrink measures a text and heals on it. To only cut, set heal.epochs=0.")
        own[f"slm.{key}"] = value
    return load_config({"name": "shrink"}, **own).slm


def _parsed(layers: str) -> int | list[int] | None:
    """Return a number of layers, their indices, or None for all of them; "3," is the single index 3."""
    if layers == "all":
        return None
    if not re.fullmatch(r"\d+|\d+,|\d+(,\d+)+", layers):
        raise UserError(f"--layers {layers!r}: give the number of layers to keep, their indices such as 0,1,5, or all.")
    return [int(index) for index in layers.split(",") if index] if "," in layers else int(layers)
