"""The command line, a thin layer over the Python API. Each command imports only what it needs."""

import sys
import traceback
from typing import Annotated, Any, NoReturn, cast

import typer

from fedcollm import __version__
from fedcollm.cli.audit import audit
from fedcollm.cli.compare import compare
from fedcollm.cli.configure import init, presets
from fedcollm.cli.deploy import deploy
from fedcollm.cli.evaluate import evaluate, report
from fedcollm.cli.export import export
from fedcollm.cli.options import option
from fedcollm.cli.predict import chat, predict
from fedcollm.cli.processes import refuse_several
from fedcollm.cli.run import check, run
from fedcollm.cli.shrink import shrink
from fedcollm.cli.streams import lasting_streams
from fedcollm.errors import Interrupted, UserError
from fedcollm.printing import printable

app: typer.Typer = typer.Typer(
    name="fedcollm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for _command in (
    run,
    compare,
    check,
    report,
    evaluate,
    predict,
    chat,
    export,
    audit,
    shrink,
    presets,
    init,
):  # in the order of `fedcollm --help`
    app.command()(_command)
app.add_typer(deploy, name="deploy")


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Co-tune a server's large model and its clients' small models without moving the clients' data."""
    refuse_several(context.invoked_subcommand)


def _fail(message: str, code: int) -> NoReturn:
    print(printable(message), file=sys.stderr)
    raise SystemExit(code)


def main() -> None:
    """Run the command line, and exit with a status.

    The status is 0 for success, 1 for a fault of fedcollm, 2 if the user's input is wrong, and 130 if interrupted.
    """
    try:
        with lasting_streams():
            _run_command()
    except UserError as error:  # nothing can be said on standard output
        _fail(f"error: {error}", 2)


def _run_command() -> NoReturn:
    usage_error = typer.BadParameter.__mro__[2]  # click's UsageError, which typer does not export
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
            cast(Any, error).show()
            raise SystemExit(2) from error
        _fail(
            f"{traceback.format_exc()}\nThis is a fault of fedcollm, not yours. Whatever a run has saved is intact.",
            1,
        )
