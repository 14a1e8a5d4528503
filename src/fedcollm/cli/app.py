"""The command line: a thin layer over the Python API."""

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console

from fedcollm import __version__
from fedcollm.cli.deploy import Json, Quiet, Settings, deploy
from fedcollm.errors import Interrupted, UserError

app = typer.Typer(
    name="fedcollm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(deploy, name="deploy")


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Co-tune a server's large model and its clients' small models without moving the clients' data."""


Source = Annotated[str, typer.Argument(metavar="CONFIG|PRESET", help="a YAML file, or a name from `fedcollm presets`")]


@app.command()
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


@app.command()
def compare(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG|PRESET]...", help="YAML files or presets, one a task; default: icd10"),
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="comma-separated; default: the paper's, and controls")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="comma-separated")] = "0",
    jobs: Annotated[
        str, typer.Option("--jobs", help="runs at once, each a process; auto: as many as memory and cores allow")
    ] = "1",
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("--out", help="directory of all runs; default: runs/compare-NAME")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run the method, the baselines and the controls, and print the paper's tables. Goes on where it was stopped."""
    from fedcollm.cli.terminal import show_comparison
    from fedcollm.config.loading import load_config, parse_settings
    from fedcollm.config.methods import PAPER
    from fedcollm.experiments.comparison import Plan, default_directory

    configs = [load_config(source, **parse_settings(settings or [])) for source in sources or ["icd10"]]
    chosen, numbers = methods.split(",") if methods else list(PAPER), _integers(seeds)
    show_comparison(Plan(out or default_directory(configs), configs, chosen, numbers), _jobs(jobs), quiet, as_json)


@app.command()
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

    from fedcollm.cli import tables as views
    from fedcollm.cli.terminal import interruptible, screen
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
    Console().print(views.cost_table(cost, trained=taken is not None))
    if taken:
        Console().print(views.measured_table(taken))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="run directories, or directories of them")],
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file; default: report.html in the first directory")
    ] = None,
) -> None:
    """Write one self-contained HTML file: tables and plots of one or more runs."""
    from fedcollm.report import write_report
    from fedcollm.runs.directory import REPORT

    print(write_report(runs, out or runs[0] / REPORT))


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    role: Annotated[str, typer.Option("--role", help="slm or llm")] = "slm",
    examples: Annotated[Path | None, typer.Option("--write-examples", help="write the test examples as JSONL")] = None,
    harness: Annotated[
        bool, typer.Option("--harness", help="run lm-evaluation-harness itself, and compare item by item")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score the adapter that a run left on disk on the run's own test examples."""
    from fedcollm.cli.terminal import screen
    from fedcollm.progress import shown
    from fedcollm.runs.runner import evaluate_run

    if harness:
        _evaluate_with_harness(run_dir, role, examples, quiet, as_json)
        return
    with shown(screen(quiet or as_json)):
        score = evaluate_run(run_dir, role, examples)
    values = {name: score.mean(name) for name in score.sums}
    if as_json:
        print(json.dumps({"role": role, "examples": score.count, **values}))
    else:
        print(
            f"{role}: "
            + ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            + f" on {score.count} examples"
        )


def _evaluate_with_harness(run_dir: Path, role: str, examples: Path | None, quiet: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from fedcollm.cli import tables as views
    from fedcollm.cli.terminal import screen
    from fedcollm.progress import shown
    from fedcollm.runs.harness import evaluate_with_harness

    if examples:
        raise UserError(f"--harness writes the test examples to {run_dir / 'harness'}; leave --write-examples out.")
    with shown(screen(quiet or as_json)):
        parity = evaluate_with_harness(run_dir, role)
    if as_json:
        print(json.dumps({"role": role} | asdict(parity)))
    else:
        Console().print(views.parity_table(role, parity))


@app.command()
def presets() -> None:
    """List the configurations that ship with fedcollm."""
    from fedcollm.config.loading import preset_description, preset_names

    for name in preset_names():
        print(f"{name:16} {preset_description(name)}")


@app.command()
def init(source: Source = "icd10") -> None:
    """Print a preset as a whole configuration, with a comment a key: `fedcollm init icd10 > my.yaml`."""
    from fedcollm.config.loading import commented_yaml, load_config

    print(commented_yaml(load_config(source)), end="")


def _jobs(text: str) -> int | Literal["auto"]:
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise UserError(f"--jobs {text!r}: give a number of runs at once, or auto")
    return "auto" if text == "auto" else int(text)


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text!r}: give whole numbers with commas between, such as 0,1,2") from error


def _fail(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(code)


def main() -> None:
    """Entry point: 0 done, 1 our fault, 2 the user's input is wrong, 130 interrupted."""
    usage_error = typer.BadParameter.__mro__[2]  # click's base class, wherever this typer keeps it
    try:
        raise SystemExit(app(standalone_mode=False))
    except UserError as error:
        _fail(f"error: {error}", 2)
    except Interrupted as error:
        _fail(str(error), 130)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted.", 130)
    except Exception as error:
        if isinstance(error, usage_error):
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            raise SystemExit(2) from error
        _fail(f"{traceback.format_exc()}\nThis is a fault of fedcollm, not yours; what a run had saved is whole.", 1)
