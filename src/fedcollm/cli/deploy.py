"""The commands `fedcollm deploy ...`: a federation over a network."""

import importlib.util
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedcollm.cli.options import Json, MemoryLimit, Quiet, Settings, argument, option
from fedcollm.cli.terminal import new_table, output, wrapped
from fedcollm.errors import UserError

if TYPE_CHECKING:
    from fedcollm.deploy.roster import Roster
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
    demo: Annotated[
        bool, option("--demo", help="make the clients' keys and directories here too, for a trial on one machine")
    ] = False,
    demo_data: Annotated[bool, option("--demo-data", help="like --demo, with the preset's data")] = False,
    unsafe_plain_updates: Annotated[
        bool,
        option(
            "--unsafe-plain-updates",
            help="allow a deployment without secure aggregation, whose server sees every update",
        ),
    ] = False,
) -> None:
    """Write the authority, the server's directory, and an invitation for each client."""
    from fedcollm.config.loading import load_as_typed, load_config, parse_settings
    from fedcollm.deploy.initialize import Choices, Site, initialize

    overrides = parse_settings(settings or [])
    if clients:
        overrides |= {"federation.participants": clients.split(","), "task.clients": len(clients.split(","))}
    config = load_config(source, **overrides)
    site = Site(host, port, superlink_port, days)
    typed = load_as_typed(source, **overrides)
    initialize(config, site, out, Choices(demo, demo_data, unsafe_plain_updates), typed)
    print((out / "README.txt").read_text(encoding="utf-8"), end="")


@deploy.command()
def join(
    invitation: Annotated[Path, argument(metavar="INVITATION", help="the file that the server's operator sent")],
    out: Annotated[Path, option("--out", help="a new directory for this client")],
    yes: Annotated[bool, option("--yes", help="accept the configuration without being asked")] = False,
    before: Annotated[
        Path | None,
        option("--continue", help="join this run again, with new keys and the memory of this older directory"),
    ] = None,
) -> None:
    """Show what this client agrees to, make its keys here, and write its request to be admitted."""
    from fedcollm.deploy.agreement import terms
    from fedcollm.deploy.invitations import join as enter
    from fedcollm.deploy.invitations import read_invitation

    read, config = read_invitation(invitation)
    for subject, sentence in terms(read, config):
        print(wrapped(f"{subject:>12}: {sentence}"))
    print(f"the complete configuration is in {invitation}, under config; nothing else is read.")
    _agree(yes, "Do you accept this?", "--yes")
    request = enter(read, out, before)
    print(
        f"made {out}, whose keys stay here.\n\n"
        f"1. Send {out / 'request.json'} to the server's operator.\n"
        f"2. Tell them this fingerprint over another channel, such as the telephone:\n   {request.fingerprint()}\n"
        "   The authority above must be the one that they name.\n"
        f"3. Try: fedcollm deploy check {out} --data DATA\n"
        f"4. Run: fedcollm deploy client {out} --data DATA"
    )


def _agree(agreed: bool, question: str, instead: str) -> None:
    """Ask a question in a terminal.

    Raises:
        UserError: the answer is no, or there is no terminal.
    """
    if agreed:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{question} There is no terminal to ask in: give {instead}.")
    if not typer.confirm(question):
        raise UserError("nothing was changed.")


Authority = Annotated[
    Path, option("--ca", help="the authority's directory, OUT/ca, which is offline the rest of the time")
]


@deploy.command()
def admit(
    directory: Server,
    request: Annotated[Path, argument(metavar="REQUEST", help="the request.json that a client sent")],
    ca: Authority,
    fingerprint: Annotated[
        str | None, option("--fingerprint", help="what the client's operator said; without it, you are asked")
    ] = None,
    again: Annotated[
        bool, option("--again", help="admit a client that was removed before: it has its memory, or other data")
    ] = False,
) -> None:
    """Admit a client, by the fingerprint of its keys. Rounds include it from the next one on."""
    from fedcollm.deploy.admission import admit as let_in
    from fedcollm.deploy.certificates import Authority
    from fedcollm.deploy.fingerprints import same
    from fedcollm.deploy.invitations import read_request

    read = read_request(request)
    print(f"client {read.client} of run {read.run}\nfingerprint: {read.fingerprint()}")
    if fingerprint is not None and not same(fingerprint, read.fingerprint()):
        raise UserError(
            "--fingerprint: the request has another one, so somebody may have exchanged it on its way. Nothing was "
            "changed. Ask the client to read its fingerprint out again."
        )
    _agree(fingerprint is not None, "Did the client's operator tell you this fingerprint?", "--fingerprint")
    roster = let_in(directory, read, Authority.load(ca), again)
    print(_changed(f"admitted {read.client}", roster, directory))


@deploy.command()
def remove(
    directory: Server, client: Annotated[str, argument(metavar="CLIENT", help="the client's name")], ca: Authority
) -> None:
    """Remove a client: it is refused from now on. Rounds are made without it from the next one on."""
    from fedcollm.deploy.admission import remove as take_out
    from fedcollm.deploy.certificates import Authority

    print(_changed(f"removed {client}", take_out(directory, client, Authority.load(ca)), directory))


def _changed(what: str, roster: "Roster", directory: Path) -> str:
    from fedcollm.deploy.processes import running

    text = f"{what}; roster {roster.version}: {', '.join(roster.clients) or 'nobody'}"
    if running(directory, "server"):
        text += "\nThe server is running, and uses this roster from the next round on."
    return text


@deploy.command()
def renew(
    directory: Server,
    ca: Authority,
    days: Annotated[int, option("--days", min=1, help="days that the new certificate is valid")] = 365,
) -> None:
    """Give the server a new certificate. A run goes on, and clients need nothing."""
    from fedcollm.deploy.admission import renew as replace
    from fedcollm.deploy.certificates import Authority

    certificate = replace(directory, Authority.load(ca), days)
    print(f"the server's certificate is valid until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")


LogJson = Annotated[bool, option("--log-json", help="write logs/fedcollm.log as JSON lines")]


@deploy.command()
def server(
    directory: Server,
    out: Out = None,
    page: Annotated[str, option("--page", help="HOST:PORT of the status page, or none")] = "127.0.0.1:9480",
    log_json: LogJson = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Start the SuperLink and nginx if needed, and run the rounds. Continue where it was stopped."""
    from fedcollm.cli.terminal import show_rounds
    from fedcollm.deploy import directories as names
    from fedcollm.deploy.logs import logged
    from fedcollm.deploy.server import run_rounds
    from fedcollm.deploy.status import default_out

    place = out or default_out(directory)
    names.read(directory, names.DEPLOYMENT, names.Deployment)
    with logged(directory, log_json):
        records = run_rounds(directory, place, None if page == "none" else page)
        show_rounds(records, place, f"fedcollm deploy server {directory}", quiet, as_json)


Client = Annotated[Path, argument(metavar="CLIENT_DIR", help="the directory that `deploy join` made")]
Data = Annotated[Path, option("--data", help="your own examples: a file, or a directory with train and test files")]


@deploy.command()
def client(
    directory: Client,
    data: Data,
    answer_after: Annotated[
        float,
        option("--answer-after", help="answer after multiples of so many seconds only, to hide how long training took"),
    ] = 0.0,
    memory_limit: MemoryLimit = None,
    log_json: LogJson = False,
    quiet: Quiet = False,
) -> None:
    """Connect to the server, and train on your own data when it asks, until the run is finished. Data stay here."""
    from fedcollm.cli.terminal import interruptible, screen
    from fedcollm.memory import parse_bytes, save_memory

    limit = None if memory_limit is None else parse_bytes(memory_limit)
    if limit is not None:
        save_memory()
    from fedcollm.deploy import directories as names
    from fedcollm.deploy.client import serve
    from fedcollm.deploy.logs import logged
    from fedcollm.progress import shown

    again = f"fedcollm deploy client {directory} --data {data}"
    if memory_limit is not None:
        again += f" --memory-limit {memory_limit}"
    names.read(directory, names.MEMBERSHIP, names.Membership)
    with (
        logged(directory, log_json),
        shown(screen(quiet)),
        interruptible(again, "The server goes on without this client"),
    ):
        finished = serve(directory, data, answer_after=answer_after, limit_bytes=limit)
    if finished and not quiet:
        print(f"finished: the final adapter, its model card and a report are in {directory / 'final'}")


@deploy.command()
def check(directory: Client, data: Data) -> None:
    """Check whether this client could take part: data, model, disk, port, certificate, clock. It joins nothing."""
    from fedcollm.deploy.checks import check as look

    good = True
    for finding in look(directory, data):
        good = good and finding.good is not False
        word = {True: "ok", False: "problem", None: "open"}[finding.good]
        output().print(f"{word:<8} {finding.name}: {finding.text}", soft_wrap=True)
    if not good:
        raise typer.Exit(2)


@deploy.command()
def status(directory: Server, out: Out = None, as_json: Json = False) -> None:
    """Show which services run, which clients are connected, and how far the run is."""
    from fedcollm.deploy.status import default_out
    from fedcollm.deploy.status import status as look

    state = look(directory, out or default_out(directory))
    if as_json:
        print(state.to_json())
    else:
        output().print(_table(state))
        done = state.last.round if state.last else "none yet"
        print(f"{state.now.phase}\nlast finished round: {done} of {state.rounds}")
        for label, text in (("reason", state.now.reason), ("trouble", state.now.trouble)):
            if text:
                print(f"{label}: {text}")
        if state.now.seconds_left:
            print(f"time left: about {state.now.seconds_left / 60:.0f} minutes")


def _table(state: "Status") -> Table:
    """Return the states of the services on the server's machine and of the clients."""
    table = new_table(f"run {state.run}", "", "state", "last seen", "lost in this round")
    for name, runs in state.services.items():
        table.add_row(name, "running" if runs else "stopped", "", "")
    table.add_section()
    for client, seen in state.now.clients.items():
        when = "never" if seen.last_seen is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen.last_seen))
        table.add_row(f"client {client}", seen.state, when, seen.lost)
    return table


@deploy.command()
def stop(directory: Server) -> None:
    """Stop the server, nginx and the SuperLink. `deploy server` continues later."""
    from fedcollm.deploy.status import stop_all

    print(f"stopped: {', '.join(stop_all(directory)) or 'nothing was running'}")
