"""The command `fedcollm shrink`: a small model out of a large one, healed on public text."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fedcollm.cli.options import Json, Quiet, argument, option
from fedcollm.errors import UserError

if TYPE_CHECKING:
    from fedcollm.config import ModelConfig


def shrink(
    source: Annotated[str, argument(metavar="MODEL", help="hub id, directory, .gguf file or shipped model")],
    out: Annotated[Path, option("--out", help="directory for the new model, which must not exist yet")],
    layers: Annotated[str, option("--layers", help="how many layers to keep, or their indices: 0,1,5")] = "10",
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
    from fedcollm.runs.shrink_scores import zero_shot
    from fedcollm.storage import writing

    if out.exists():
        raise UserError(f"--out: {out} exists already. Choose another directory.")
    config = load_config(task or "icd10")
    with shown(screen(quiet or as_json)), interruptible("the same command", "The finished steps are saved"):
        made = Path(shrunk(_section(source, layers, settings or []), resolve_device(config.device)).source)
        scores = zero_shot(config, source, made) if task else {}
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(made, out)
    report = shrink_report(out)
    if as_json:
        print(json.dumps(dataclasses.asdict(report) | {"scores": scores, "directory": str(out)}))
    elif not quiet:
        output().print(shrink_table(report, scores))
        print(f"use it with: --set slm.source={out.resolve()} --set slm.layers=null")


def _section(source: str, layers: str, settings: list[str]) -> "ModelConfig":
    """Return the section of the new model: healed with the default settings, unless others are given."""
    from fedcollm.config.loading import load_config, parse_settings

    own = {
        f"slm.{key}": value for key, value in parse_settings([f"layers={_number_or_list(layers)}", *settings]).items()
    }
    return load_config("icd10", **{"slm.source": source, "slm.heal": {}} | own).slm


def _number_or_list(layers: str) -> str:
    return f"[{layers}]" if "," in layers else layers
