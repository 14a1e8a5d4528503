"""`fedcollm deploy ...`: a real federation over a network."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedcollm.cli.options import Json, Quiet, Settings
from fedcollm.cli.terminal import output
from fedcollm.errors import UserError

if TYPE_CHECKING:
    from fedcollm.deploy.status import Status

deploy = typer.Typer(no_args_is_help=True, help="A federation over a network: certificates, server, clients.")

Server = Annotated[Path, typer.Argument(metavar="SERVER_DIR", help="OUT/server, as `deploy init` wrote it")]
Out = Annotated[Path | None, typer.Option("--out", help="run directory; default: SERVER_DIR/run")]


@deploy.callback()
def needs_flower() -> None:
    """A federation over a network: certificates, server, clients."""
    if importlib.util.find_spec("flwr") is None:
        raise UserError("deploy needs Flower. Install it: pip install 'fedcollm[deploy]'")


@deploy.command()
def init(
    source: Annotated[str, typer.Argument(metavar="CONFIG|PRESET", help="a YAML file, or a preset")],
    host: Annotated[str, typer.Option("--host", help="name or address by which clients reach the server")],
    clients: Annotated[
        str | None, typer.Option("--clients", help="names with commas between; default: 0,1,...")
    ] = None,
    settings: Settings = None,
    out: Annotated[Path, typer.Option("--out", help="a new directory")] = Path("deployment"),
    port: Annotated[int, typer.Option("--port", help="open to clients")] = 9443,
    superlink_port: Annotated[int, typer.Option("--superlink-port", help="of the server's machine alone")] = 9093,
    days: Annotated[int, typer.Option("--days", help="validity of the server's certificate")] = 365,
    demo_data: Annotated[bool, typer.Option("--demo-data", help="write the preset's data for a trial")] = False,
    unsafe_plain_updates: Annotated[
        bool, typer.Option("--unsafe-plain-updates", help="without secure aggregation: the server sees every update")
    ] = False,
) -> None:
    """Write certificates, keys and configurations: one directory for the server, one for each client."""
    from fedcollm.config.loading import load_config, parse_settings
    from fedcollm.deploy.initialize import Site, initialize

    overrides = parse_settings(settings or [])
    if clients:
        overrides |= {"federation.participants": clients.split(","), "task.clients": len(clients.split(","))}
    config = load_config(source, **overrides)
    site = Site(host, port, superlink_port, days)
    initialize(config, site, out, demo_data=demo_data, plain_updates=unsafe_plain_updates)
    print((out / "README.txt").read_text(encoding="utf-8"), end="")


@deploy.command()
def server(directory: Server, out: Out = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Start the SuperLink and nginx where needed, and run the rounds; goes on where it was stopped."""
    from fedcollm.cli.terminal import show_rounds
    from fedcollm.deploy.server import run_rounds
    from fedcollm.deploy.status import default_out

    place = out or default_out(directory)
    show_rounds(run_rounds(directory, place), place, f"fedcollm deploy server {directory}", quiet, as_json)


@deploy.command()
def client(
    directory: Annotated[Path, typer.Argument(metavar="CLIENT_DIR", help="as the server's operator handed it over")],
    data: Annotated[
        Path, typer.Option("--data", help="own examples: a file, or a directory with train and test files")
    ],
    quiet: Quiet = False,
) -> None:
    """Connect to the server, train on your own data when it asks, until stopped. The data stays here."""
    from fedcollm.cli.terminal import interruptible, screen
    from fedcollm.deploy.client import serve
    from fedcollm.progress import shown

    again = f"fedcollm deploy client {directory} --data {data}"
    with shown(screen(quiet)), interruptible(again, "The server goes on without this client"):
        serve(directory, data)


@deploy.command()
def status(directory: Server, out: Out = None, as_json: Json = False) -> None:
    """What runs, who is connected, how far the run is."""
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
    """What runs on the server's machine, and who is connected to it."""
    table = Table(title=f"run {state.run}", title_justify="left")
    table.add_column("")
    table.add_column("state")
    for name, runs in state.services.items():
        table.add_row(name, "running" if runs else "stopped")
    table.add_section()
    for client, said in state.clients.items():
        table.add_row(f"client {client}", said)
    return table


@deploy.command()
def stop(directory: Server) -> None:
    """Stop the server, nginx and the SuperLink; `deploy server` goes on later."""
    from fedcollm.deploy.status import stop_all

    print(f"stopped: {', '.join(stop_all(directory)) or 'nothing was running'}")
