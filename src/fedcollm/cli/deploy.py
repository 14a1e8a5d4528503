"""The commands `fedcollm deploy ...`: a federation over a network."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedcollm.cli.options import Json, Quiet, Settings, argument, option
from fedcollm.cli.terminal import new_table, output
from fedcollm.errors import UserError

if TYPE_CHECKING:
    from fedcollm.deploy.status import Status

deploy: typer.Typer = typer.Typer(
    no_args_is_help=True, help="A federation over a network: certificates, server, clients."
)

Server = Annotated[Path, argument(metavar="SERVER_DIR", help="the directory OUT/server that `deploy init` wrote")]
Out = Annotated[Path | None, option("--out", help="run directory; default: SERVER_DIR/run")]


@deploy.callback()
def needs_flower() -> None:
    """A federation over a network: certificates, server, clients."""
    if importlib.util.find_spec("flwr") is None:
        raise UserError("deploy needs Flower. Install it: pip install 'fedcollm[deploy]'")


@deploy.command()
def init(
    source: Annotated[str, argument(metavar="CONFIG|PRESET", help="a YAML file, or a preset")],
    host: Annotated[str, option("--host", help="name or address at which clients reach the server")],
    clients: Annotated[str | None, option("--clients", help="comma-separated names; default: 0,1,...")] = None,
    settings: Settings = None,
    out: Annotated[Path, option("--out", help="a new directory")] = Path("deployment"),
    port: Annotated[int, option("--port", help="port that is open to clients")] = 9443,
    superlink_port: Annotated[
        int, option("--superlink-port", help="port of the SuperLink, open on the server's machine only")
    ] = 9093,
    days: Annotated[int, option("--days", help="days that the server's certificate is valid")] = 365,
    demo_data: Annotated[bool, option("--demo-data", help="write the preset's data, to try the deployment")] = False,
    unsafe_plain_updates: Annotated[
        bool,
        option(
            "--unsafe-plain-updates",
            help="allow a deployment without secure aggregation, whose server sees every update",
        ),
    ] = False,
) -> None:
    """Write certificates, keys and configurations: one directory for the server, one for each client."""
    from fedcollm.config.loading import load_as_typed, load_config, parse_settings
    from fedcollm.deploy.initialize import Site, initialize

    overrides = parse_settings(settings or [])
    if clients:
        overrides |= {"federation.participants": clients.split(","), "task.clients": len(clients.split(","))}
    config = load_config(source, **overrides)
    site = Site(host, port, superlink_port, days)
    typed = load_as_typed(source, **overrides)
    initialize(config, site, out, demo_data=demo_data, plain_updates=unsafe_plain_updates, typed=typed)
    print((out / "README.txt").read_text(encoding="utf-8"), end="")


@deploy.command()
def server(directory: Server, out: Out = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Start the SuperLink and nginx if needed, and run the rounds. Continue where it was stopped."""
    from fedcollm.cli.terminal import show_rounds
    from fedcollm.deploy.server import run_rounds
    from fedcollm.deploy.status import default_out

    place = out or default_out(directory)
    show_rounds(run_rounds(directory, place), place, f"fedcollm deploy server {directory}", quiet, as_json)


@deploy.command()
def client(
    directory: Annotated[
        Path, argument(metavar="CLIENT_DIR", help="the directory that the server's operator handed over")
    ],
    data: Annotated[Path, option("--data", help="your own examples: a file, or a directory with train and test files")],
    answer_after: Annotated[
        float, option("--answer-after", help="seconds that training takes for the server, whatever it really takes")
    ] = 0.0,
    quiet: Quiet = False,
) -> None:
    """Connect to the server, and train on your own data when it asks, until stopped. The data stays here."""
    from fedcollm.cli.terminal import interruptible, screen
    from fedcollm.deploy.client import serve
    from fedcollm.progress import shown

    again = f"fedcollm deploy client {directory} --data {data}"
    with shown(screen(quiet)), interruptible(again, "The server goes on without this client"):
        serve(directory, data, answer_after=answer_after)


@deploy.command()
def status(directory: Server, out: Out = None, as_json: Json = False) -> None:
    """Show which services run, which clients are connected, and how far the run is."""
    from fedcollm.deploy.status import default_out
    from fedcollm.deploy.status import status as look

    state = look(directory, out or default_out(directory))
    if as_json:
        print(json.dumps(asdict(state)))
    else:
        output().print(_table(state))
        done = state.last.round if state.last else "none yet"
        print(f"last finished round: {done} of {state.rounds}")


def _table(state: "Status") -> Table:
    """Return the states of the services on the server's machine and of the clients."""
    table = new_table(f"run {state.run}", "", "state")
    for name, runs in state.services.items():
        table.add_row(name, "running" if runs else "stopped")
    table.add_section()
    for client, said in state.clients.items():
        table.add_row(f"client {client}", said)
    return table


@deploy.command()
def stop(directory: Server) -> None:
    """Stop the server, nginx and the SuperLink. `deploy server` continues later."""
    from fedcollm.deploy.status import stop_all

    print(f"stopped: {', '.join(stop_all(directory)) or 'nothing was running'}")
