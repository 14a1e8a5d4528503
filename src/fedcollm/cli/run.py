"""The commands `fedcollm run` and `fedcollm check`: run a configuration, or only validate it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fedcollm.cli.options import AcceptChangedData, Json, MemoryLimit, Quiet, Settings, Source, argument, option

if TYPE_CHECKING:
    from fedcollm.config import RunConfig
    from fedcollm.messages import RoundRecord
    from fedcollm.runs.estimate import Cost


def run(
    source: Annotated[
        str | None, argument(metavar="[CONFIG|PRESET]", help="a YAML file or a preset; default: icd10")
    ] = None,
    settings: Settings = None,
    out: Annotated[Path | None, option("--out", help="run directory; default: runs/NAME")] = None,
    resume: Annotated[bool, option("--resume", help="continue the run in --out")] = False,
    accept_changed_data: AcceptChangedData = False,
    memory_limit: MemoryLimit = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a federation and write a run directory with its report."""
    from fedcollm.cli.terminal import show_rounds
    from fedcollm.config.loading import load_config, parse_settings
    from fedcollm.runs.directory import default_directory, read_config
    from fedcollm.storage import check_place

    if out is not None:
        check_place(out)
    overrides = parse_settings(settings or [])
    if resume and out and source is None:  # the configuration is that of the run directory
        stored = read_config(out)  # before libraries are loaded, which takes seconds
        config = load_config(stored.model_dump(), **overrides) if overrides or memory_limit else None
    else:
        config = load_config(source or "icd10", **overrides)
    directory = out or default_directory(config or load_config())
    memory: Mapping[str, Any] = {}
    if memory_limit is not None and config is not None:
        config, cost = _fitted(config, memory_limit)
        memory = cost.limited
    records = _records(config, directory, resume, accept_changed_data, memory)
    show_rounds(records, directory, f"fedcollm run --resume --out {directory}", quiet, as_json)


def _records(
    config: "RunConfig | None", directory: Path, resume: bool, accept_changed_data: bool, memory: Mapping[str, Any]
) -> Iterator["RoundRecord"]:
    """Yield the records of a run. Import what it needs, which takes seconds, only when the first is asked for."""
    from fedcollm.runs.build import Inputs
    from fedcollm.runs.runner import rounds

    inputs = Inputs(accept_changed_data=accept_changed_data, memory=memory)
    yield from rounds(config, directory, inputs, resume=resume)


def _fitted(config: "RunConfig", memory_limit: str) -> "tuple[RunConfig, Cost]":
    """Return a configuration that fits into a limit, and what it costs.

    Raises:
        UserError: the limit is no size, the configuration is not usable, or not even one example at a time fits.
    """
    from fedcollm.config.baselines import changed
    from fedcollm.memory import parse_bytes, save_memory

    limit = parse_bytes(memory_limit)
    save_memory()
    from fedcollm.runs.estimate import check as check_config  # imports what takes seconds

    cost = check_config(config, limit_bytes=limit)
    return changed(config, cost.fitted), cost


def check(
    source: Source,
    settings: Settings = None,
    measured: Annotated[
        bool, option("--measure", help="train a few batches, and predict the seconds, memory and bytes of a run")
    ] = False,
    memory_limit: MemoryLimit = None,
    as_json: Json = False,
) -> None:
    """Validate a configuration, and print its sizes and settings. Train nothing, unless --measure is given."""
    from fedcollm.cli.check_tables import cost_table, measured_table, settings_table
    from fedcollm.cli.terminal import interruptible, output, screen
    from fedcollm.config.loading import load_config, parse_settings
    from fedcollm.config.words import everything_in_words
    from fedcollm.progress import shown

    config, taken = load_config(source, **parse_settings(settings or [])), None
    if memory_limit is not None:
        config, cost = _fitted(config, memory_limit)
    else:
        from fedcollm.runs.estimate import check as check_config  # imports what takes seconds

        cost = check_config(config)
    if measured:
        from fedcollm.runs.profile import measure

        with shown(screen(as_json)), interruptible("the same command", "Nothing was kept"):
            taken = measure(config)
    if as_json:
        words = {"settings": everything_in_words(config)}
        print(json.dumps(asdict(cost) | words | ({"measured": asdict(taken)} if taken else {})))
        return
    output().print(cost_table(cost, trained=taken is not None))
    output().print(settings_table(config))
    if taken:
        output().print(measured_table(taken))
