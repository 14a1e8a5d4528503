"""`fedcollm deploy check`: whether a client could take part. It joins nothing and sends nothing of the data."""

import contextlib
import email.utils
import shutil
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from fedcollm.deploy import directories as names
from fedcollm.deploy.directories import Membership
from fedcollm.deploy.ownership import check_directory
from fedcollm.deploy.roster_keeper import NotAdmittedError, RosterKeeper
from fedcollm.errors import UserError
from fedcollm.messages import readable

_SECONDS, _MOST_SKEW_SECONDS = 10.0, 30.0
_LEAST_BYTES, _LEAST_DAYS = 2 * 2**30, 14
_ANSWERED = ("certificate", "clock", "roster")  # what needs an answer of the server


class _UnreachableError(UserError):
    """The server can't be reached."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: what was checked.
        good: whether nothing stands in the way; None if that is open: it was not checked, or it is the operator's turn.
        text: what was found and, if something is wrong, what to do.
    """

    name: str
    good: bool | None
    text: str


def check(directory: Path, data: Path) -> Iterator[Finding]:
    """Yield what was found, one check at a time.

    Args:
        directory: the client's directory.
        data: the client's examples: a file or a directory.

    Raises:
        UserError: the directory is not a client's, so that nothing can be checked.
    """
    member = names.read(directory, names.MEMBERSHIP, Membership)
    checks: dict[str, Callable[[], str]] = {
        "keys": lambda: _keys(directory),
        "data and model": lambda: _data(directory, data),
        "disk": lambda: _disk(directory),
        "port": lambda: _port(member),
        "certificate": lambda: _certificate(member, directory),
        "clock": lambda: _clock(member, directory),
        "roster": lambda: _roster(member, directory),
    }
    reachable = True
    for name, look in checks.items():
        if not reachable and name in _ANSWERED:
            yield Finding(name, None, "not checked, as the server can't be reached")
            continue
        try:
            yield Finding(name, True, look())
        except NotAdmittedError as error:  # the operator's turn
            yield Finding(name, None, readable(str(error)))
        except (UserError, OSError, httpx.HTTPError, KeyError, ValueError) as error:
            reachable = reachable and not isinstance(error, _UnreachableError | httpx.TransportError | OSError)
            yield Finding(name, False, readable(str(error) or type(error).__name__))


def _keys(directory: Path) -> str:
    check_directory(directory)
    names.node_key(directory)
    names.signing_key(directory)
    return "both private keys are here, and only their owner can read them"


def _data(directory: Path, data: Path) -> str:
    from fedcollm.data.catalogue import build_client_modality
    from fedcollm.deploy.bases import check_slm
    from fedcollm.deploy.client import private_examples
    from fedcollm.runs.build_models import build_slm, set_backends

    config = names.read_config(directory)
    member = names.read(directory, names.MEMBERSHIP, Membership)
    modality = build_client_modality(config.task, config.slm, member.facts)
    examples, test = private_examples(config, modality, data)
    set_backends(config)
    check_slm(config, member.base)
    build_slm(config, modality, [], directory / "state" / "base")
    return f"{len(examples)} examples to train on and {len(test)} to test on; {config.slm.source} loads" + (
        ", and is the operator's SLM" if member.base else ""
    )


def _disk(directory: Path) -> str:
    free = shutil.disk_usage(directory).free
    if free < _LEAST_BYTES:
        raise UserError(f"{free / 2**30:.1f} GiB free in {directory}. Make at least {_LEAST_BYTES / 2**30:g} GiB free.")
    return f"{free / 2**30:.0f} GiB free"


def _port(member: Membership) -> str:
    host, _, port = member.address.rpartition(":")
    proxy = urllib.request.getproxies().get("https")
    if proxy and not urllib.request.proxy_bypass(host):
        return f"the proxy {httpx.URL(proxy).host} of HTTPS_PROXY is asked for {member.address}"
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()
    except OSError as error:
        raise _UnreachableError(
            f"{member.address} can't be reached ({error}). Ask whether the server runs, and let this port "
            "through for outgoing connections."
        ) from error
    return f"{member.address} can be reached"


def _certificate(member: Membership, directory: Path) -> str:
    with _asked(member, directory) as response:
        tls = response.extensions["network_stream"].get_extra_info("ssl_object")
        end, version = tls.getpeercert()["notAfter"], tls.version()
    days = (ssl.cert_time_to_seconds(end) - time.time()) / 86400
    if days < _LEAST_DAYS:
        raise UserError(f"the server's certificate ends in {days:.0f} days. Ask the operator to renew it.")
    return f"{version}, the server's certificate is this deployment's, for {days:.0f} days more"


def _clock(member: Membership, directory: Path) -> str:
    """Compare clocks: a request is signed with its time, and the SuperLink refuses old ones."""
    with _asked(member, directory) as response:
        skew = time.time() - email.utils.parsedate_to_datetime(response.headers["Date"]).timestamp()
    if abs(skew) > _MOST_SKEW_SECONDS:
        raise UserError(f"this clock differs from the server's by {skew:.0f} s. Set it, for instance by NTP.")
    return f"within {abs(skew):.0f} s of the server's"


@contextlib.contextmanager
def _asked(member: Membership, directory: Path) -> Generator[httpx.Response, None, None]:
    """Yield the answer of the server's nginx to a path that it has not, over a proxy if this machine has one."""
    context = ssl.create_default_context(cafile=str(directory / names.CA))
    url = f"https://{member.address}/"
    with httpx.Client(verify=context, timeout=_SECONDS) as client, client.stream("GET", url) as response:
        yield response


def _roster(member: Membership, directory: Path) -> str:
    keeper = RosterKeeper(directory, member, names.signing_key(directory).public_key().public_bytes_raw().hex())
    keeper.check_newest()
    return f"client {member.client} is admitted"
