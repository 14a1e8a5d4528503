"""`fedcollm run` and `check`: one configuration, run or only validated."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedcollm.cli.options import Json, Quiet, Settings, Source


def run(
    source: Annotated[
        str | None, typer.Argument(metavar="[CONFIG|PRESET]", help="a YAML file or a preset; default: icd10")
    ] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("--out", help="run directory; default: runs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a federation and write a run directory with its report."""
    from fedcollm.cli.terminal import show_rounds
    from fedcollm.config.loading import load_config, parse_settings
    from fedcollm.runs.runner import default_directory, rounds

    overrides = parse_settings(settings or [])
    config = (
        None if resume and source is None and not overrides and out else load_config(source or "icd10", **overrides)
    )
    directory = out or default_directory(config or load_config())
    records = rounds(config, directory, resume=resume)
    show_rounds(records, directory, f"fedcollm run --resume --out {directory}", quiet, as_json)


def check(
    source: Source,
    settings: Settings = None,
    measured: Annotated[
        bool, typer.Option("--measure", help="train a few batches, and predict a run's seconds, memory and bytes")
    ] = False,
    as_json: Json = False,
) -> None:
    """Validate a configuration; print parameters, bytes and a memory estimate; without --measure nothing is trained."""
    from dataclasses import asdict

    from fedcollm.cli.tables import cost_table, measured_table
    from fedcollm.cli.terminal import interruptible, output, screen
    from fedcollm.config.loading import load_config, parse_settings
    from fedcollm.progress import shown
    from fedcollm.runs.estimate import check as check_config
    from fedcollm.runs.profile import measure

    config, taken = load_config(source, **parse_settings(settings or [])), None
    cost = check_config(config)
    if measured:
        with shown(screen(as_json)), interruptible("the same command", "Nothing was kept"):
            taken = measure(config)
    if as_json:
        print(json.dumps(asdict(cost) | ({"measured": asdict(taken)} if taken else {})))
        return
    output().print(cost_table(cost, trained=taken is not None))
    if taken:
        output().print(measured_table(taken))
