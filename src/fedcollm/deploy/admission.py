"""Who may take part: `fedcollm deploy admit`, `remove` and `renew`, at the server's operator.

All three need the authority's key, which is kept offline the rest of the time. A change lets a client in or out of the
network at once. A running server uses the new roster from the next round on: in the present one, a removed client
counts as lost, without being waited for, and a new one waits.

Whoever reads the deployment to change it, or to act on it, holds its lock meanwhile.
"""

import base64
import contextlib
import re
from collections.abc import Collection, Generator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from fedcollm.deploy import directories as names
from fedcollm.deploy.certificates import Authority, hosts
from fedcollm.deploy.directories import Deployment, PublicKeys
from fedcollm.deploy.invitations import Request
from fedcollm.deploy.processes import running
from fedcollm.deploy.roster import Roster, in_order, sign
from fedcollm.deploy.services import reload_proxy, superlink
from fedcollm.errors import UserError
from fedcollm.storage import one_at_a_time, write_atomically, writing

_PUBLISHED = 0o644  # nginx's workers may be another user's


def admit(directory: Path, request: Request, authority: Authority, again: bool = False) -> Roster:
    """Add a client's public keys to the roster.

    Args:
        directory: the server's directory.
        request: the client's request, whose proof and fingerprint were checked.
        authority: signs the new roster.
        again: whether a client that was on the roster before is admitted with new keys.

    Returns:
        The new roster.

    Raises:
        UserError: the client was not invited, was removed before and `again` is not given, or is on the roster already;
            a key is another client's; or the request is for another run.
    """
    with _changing(directory, authority) as deployment:
        if request.run != deployment.run:
            raise UserError(f"the request is for run {request.run}, and {directory} holds run {deployment.run}.")
        if request.client not in deployment.invited:
            raise UserError(
                f"client {request.client} was not invited to this run. Invited: {', '.join(deployment.invited)}."
            )
        known = deployment.clients.get(request.client)
        if known == request.keys:
            raise UserError(f"client {request.client} was admitted with these keys before. There is nothing to do.")
        if known is not None:
            raise UserError(
                f"client {request.client} is on the roster with other keys. If it has made new ones, take the old ones "
                f"out first: fedcollm deploy remove {directory} {request.client}"
            )
        for client, keys in deployment.clients.items():
            if _share_a_key(request.keys, keys):
                raise UserError(f"the request of client {request.client} has a key of client {client}. Refuse it.")
        if any(_share_a_key(request.keys, keys) for keys in deployment.removed):
            raise UserError(
                f"the keys of this request were removed before. Let client {request.client} run `fedcollm deploy join` "
                "again, into a new directory."
            )
        if request.client in deployment.former and not again:
            raise UserError(
                f"client {request.client} was part of this run before, with other keys. If its new directory lacks the "
                "memory of the old one, its privacy budget, its statistics and its rounds start again on the same "
                "data. Ask its operator whether they joined with --continue, and then give --again."
            )
        return _save(directory, deployment, {**deployment.clients, request.client: request.keys}, authority)


def remove(directory: Path, client: str, authority: Authority) -> Roster:
    """Take a client out of the roster, and refuse its further requests.

    For a client that is out already, let the services know once more: an earlier attempt may have failed there.

    Args:
        directory: the server's directory.
        client: the client's id.
        authority: signs the new roster.

    Returns:
        The new roster.

    Raises:
        UserError: the client was never on the roster, or it is out and a running service has not taken the change.
    """
    with _changing(directory, authority) as deployment:
        if client not in deployment.clients and client in deployment.invited and deployment.removed:
            grant_access(directory, deployment)
            return deployment.roster.verified(authority.pem(), deployment.run)
        if client not in deployment.clients:
            there = ", ".join(deployment.clients) or "nobody"
            raise UserError(f"client {client!r} is not on the roster. On it: {there}.")
        left = {name: keys for name, keys in deployment.clients.items() if name != client}
        gone = [*deployment.removed, deployment.clients[client]]
        former = list(dict.fromkeys([*deployment.former, client]))
        deployment = deployment.model_copy(update={"removed": gone, "former": former})
        return _save(directory, deployment, left, authority)


def renew(directory: Path, authority: Authority, days: int) -> x509.Certificate:
    """Give the server a new certificate and a new key for it. A run goes on, and clients need nothing.

    Args:
        directory: the server's directory.
        authority: signs the certificate.
        days: how long it is valid from now.

    Returns:
        The new certificate.

    Raises:
        UserError: the certificate is written, and a running nginx goes on with the one before.
    """
    with _changing(directory, authority) as deployment:
        certificate, key = authority.server(hosts(deployment.host), days)
        with writing(directory):
            write_atomically(directory / names.SERVER_KEY, key.decode(), mode=0o600)
            write_atomically(directory / names.CERTIFICATE, certificate.decode(), mode=0o644)
        reload_proxy(directory, deployment)
        return x509.load_pem_x509_certificate(certificate)


def nodes_map(deployment: Deployment) -> str:
    """Return the keys that nginx lets through, as they stand in the head of a request, with a number for each client.

    They are regular expressions, because nginx ignores case in other keys, and a client would get around its limits
    with another spelling of its own.
    """
    keys = [base64.b64encode(keys.node.encode()).decode() for keys in deployment.clients.values()]
    return "".join(f'"~^{re.escape(key)}$" {number};\n' for number, key in enumerate(keys, start=1))


@contextlib.contextmanager
def _changing(directory: Path, authority: Authority) -> Generator[Deployment, None, None]:
    """Hold the lock of a deployment that is to be changed, whose authority this is."""
    names.read(directory, names.DEPLOYMENT, Deployment)  # before a lock is made in what is no server's directory
    if (directory / names.CA).read_bytes() != authority.pem():
        raise UserError("--ca: this is another deployment's authority. Give the ca/ that was made with it.")
    with reading(directory) as deployment:
        yield deployment


@contextlib.contextmanager
def reading(directory: Path) -> Generator[Deployment, None, None]:
    """Hold the lock of a deployment, which nobody changes meanwhile. It waits for its turn.

    Yields:
        The deployment as it is now.
    """
    with one_at_a_time(directory / names.DEPLOYMENT):
        yield names.read(directory, names.DEPLOYMENT, Deployment)


def _share_a_key(one: PublicKeys, other: PublicKeys) -> bool:
    return one.node == other.node or one.signing == other.signing


def _save(directory: Path, deployment: Deployment, clients: dict[str, PublicKeys], authority: Authority) -> Roster:
    """Write a changed roster, in one file at once, and let the running services know."""
    before = deployment.roster.verified(authority.pem(), deployment.run)
    ordered = in_order(clients, deployment.invited)
    roster = Roster(
        run=deployment.run,
        version=before.version + 1,
        clients={name: keys.signing for name, keys in ordered.items()},
    )
    changed = deployment.model_copy(update={"clients": ordered, "roster": sign(roster, authority.key)})
    with writing(directory):
        write_atomically(directory / names.DEPLOYMENT, changed.model_dump_json(indent=1), mode=0o600)
    grant_access(directory, changed)
    return roster


@dataclass
class Admitted:
    """The nodes that the operator admits at the moment, read again whenever the deployment's file has changed.

    Attributes:
        directory: the server's directory.
    """

    directory: Path
    _changed: int = field(init=False, repr=False, default=-1)
    _keys: Collection[bytes] | None = field(init=False, repr=False, default=None)

    def __call__(self) -> Collection[bytes] | None:
        """Return the nodes' public keys, in Flower's format; the last known ones, or None, if they can't be read."""
        with contextlib.suppress(OSError, UserError):
            changed = (self.directory / names.DEPLOYMENT).stat().st_mtime_ns
            if changed != self._changed:
                clients = names.read(self.directory, names.DEPLOYMENT, Deployment).clients
                self._changed, self._keys = changed, {keys.node.encode() for keys in clients.values()}
        return self._keys


def grant_access(directory: Path, deployment: Deployment) -> None:
    """Let nginx and the SuperLink, if they run, accept the clients of the roster and nobody else.

    The caller holds the lock. What one of the two does not take, the other one takes all the same.

    Raises:
        UserError: nginx has not taken the change.
    """
    with writing(directory):
        write_atomically(directory / names.NODES, nodes_map(deployment), mode=0o600)
        write_atomically(directory / "public" / names.LATEST, deployment.roster.model_dump_json(), mode=_PUBLISHED)
    if running(directory, "superlink"):
        link = superlink(directory, deployment)
        if link.is_up():
            link.register(keys.node.encode() for keys in deployment.clients.values())
    reload_proxy(directory, deployment)


def publish(directory: Path, deployment: Deployment) -> dict[str, PublicKeys]:
    """Put the newest roster into force, which is what clients fetch. Return client id to public keys.

    Raises:
        UserError: the roster is not signed, or the keys beside it are others.
    """
    roster = deployment.roster.verified((directory / names.CA).read_bytes(), deployment.run)
    if roster.clients != {name: keys.signing for name, keys in deployment.clients.items()}:
        raise UserError(
            f"{directory / names.DEPLOYMENT}: the clients are not those of the signed roster. Take a client out and "
            "admit it again with `fedcollm deploy remove` and `admit`; never edit the file."
        )
    with writing(directory):
        for name in (names.ROSTER, names.LATEST):
            write_atomically(directory / "public" / name, deployment.roster.model_dump_json(), mode=_PUBLISHED)
    return dict(deployment.clients)
