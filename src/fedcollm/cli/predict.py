"""The commands `fedcollm predict` and `fedcollm chat`: use what was trained."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fedcollm.cli.options import Json, Quiet, argument, option
from fedcollm.errors import UserError

if TYPE_CHECKING:
    from fedcollm.runs.predictor import Predictor

Model = Annotated[Path, argument(metavar="RUN_DIR", help="a run directory, or the directory of an adapter")]
Role = Annotated[str, option("--role", help="slm, llm, or clients/ID for the adapter that a client keeps")]
OneRole = Annotated[str | None, option("--role", help="slm (the default), llm, or clients/ID")]
Device = Annotated[str, option("--device", help="cpu, cuda, cuda:1, ...; auto: CUDA if available")]

#: Choices that `chat` shows.
_SHOWN = 5


def predict(
    run_dir: Model,
    table: Annotated[Path, argument(metavar="TABLE", help="CSV, TSV, JSON lines or Parquet, with the task's columns")],
    out: Annotated[Path, option("--out", help="table to write: .csv, .tsv, .jsonl or .parquet")],
    role: OneRole = None,
    ensemble: Annotated[bool, option("--ensemble", help="average the probabilities of both models")] = False,
    prefix: Annotated[str, option("--prefix", help="what the names of the added columns begin with")] = "",
    batch_size: Annotated[int | None, option("--batch-size", min=1, help="rows per batch; default: as scored")] = None,
    encoding: Annotated[str | None, option("--encoding", help="of a text table; default: the run's own")] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict the rows of a table: keeps every column, and adds the answer and the probability of each choice."""
    from fedcollm.cli.terminal import interruptible, screen
    from fedcollm.progress import shown
    from fedcollm.runs.predict import ROLES, Options, predict_table

    if ensemble and role is not None:
        raise UserError(f"--ensemble averages both models, so --role {role} has no effect. Leave one of the two out.")
    roles = ROLES if ensemble else (role or "slm",)
    with (
        interruptible(shlex.join(["fedcollm", *sys.argv[1:]]), "Every finished batch is saved"),
        shown(screen(quiet or as_json)),
    ):
        count = predict_table(run_dir, table, out, Options(roles, batch_size, encoding, prefix, device))
    if as_json:
        print(json.dumps({"out": str(out), "rows": count, "roles": list(roles)}))
    elif not quiet:
        print(f"{out}: {count:,} rows")


def chat(run_dir: Model, role: Role = "llm", device: Device = "auto") -> None:
    """Ask a trained model line by line, and read its answers; end with Ctrl-D. Lines can be piped in, too."""
    from fedcollm.cli.terminal import screen
    from fedcollm.progress import say, shown
    from fedcollm.runs.predict import model_directory
    from fedcollm.runs.predictor import Predictor

    with shown(screen(silent=False)):
        say(f"loading the {role.upper()}")
        model = Predictor.load(model_directory(run_dir, role), device)
    for line in _lines():
        try:
            print(_answer(model, line), flush=True)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)


def _lines() -> Iterator[str]:
    """Yield the lines of standard input that are not empty, asking for each if somebody types them."""
    typed = sys.stdin.isatty()
    while True:
        if typed:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        if line.strip():
            yield line.rstrip("\r\n")
    if typed:
        print(file=sys.stderr)


def _answer(model: "Predictor", line: str) -> str:
    """Return what a model says to a line, which is a row's only column if answers are choices."""
    if not model.has_choices:
        return model.generate(line)
    columns = model.columns
    if len(columns) != 1:
        raise UserError(
            f"this task is asked with the columns {', '.join(columns)}, which do not fit into one line. Use "
            "fedcollm predict with a table."
        )
    one = model.predict([{columns[0]: line}])[0]
    likely = sorted(one.probabilities.items(), key=lambda item: -item[1])[:_SHOWN]
    return f"{one.text}  ({', '.join(f'{name} {value:.3f}' for name, value in likely)})"
