"""The roster at a client: fetched from the server, verified, and never replaced by an older one."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from pydantic import ValidationError

from fedcollm.deploy import directories as names
from fedcollm.deploy.directories import Membership
from fedcollm.deploy.roster import LONGEST_BYTES, Roster, SignedRoster
from fedcollm.errors import UserError
from fedcollm.storage import write_atomically, writing

_SECONDS = 10.0


class RemovedError(UserError):
    """The operator has taken this client out of the run."""


class NotAdmittedError(UserError):
    """The operator has not admitted this client yet."""


def fetch(member: Membership, authority: Path, name: str) -> bytes:
    """Return a roster's file from the server, over TLS with the deployment's own authority.

    Args:
        member: what the client knows about the deployment.
        authority: file of the authority's certificate.
        name: name of the file.

    Raises:
        httpx.HTTPError: the server can't be reached, or has no such file.
    """
    context = ssl.create_default_context(cafile=str(authority))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    url, content = f"https://{member.address}/roster/{member.run}/{name}", b""
    with httpx.Client(verify=context, timeout=_SECONDS) as client, client.stream("GET", url) as response:
        response.raise_for_status()
        for part in response.iter_bytes():
            content += part
            if len(content) > 2 * LONGEST_BYTES:
                raise httpx.DecodingError(f"a roster longer than {2 * LONGEST_BYTES} bytes")
    return content


@dataclass
class RosterKeeper:
    """The newest roster that a client has seen.

    Attributes:
        directory: the client's directory.
        member: what the client knows about the deployment.
        own: the client's own public signing key, in hexadecimal.
        fetch: returns a roster's file from the server; see `fetch`.
    """

    directory: Path
    member: Membership
    own: str
    fetch: Callable[[Membership, Path, str], bytes] = field(default=fetch, repr=False)

    def kept(self) -> Roster | None:
        """Return the roster on disk; None before the first one.

        Raises:
            UserError: it is damaged, or this client is not on it.
        """
        file = self.directory / names.ROSTER
        return self._verified(file.read_bytes()) if file.exists() else None

    def refreshed(self) -> Roster:
        """Return the roster that is in force, after it was saved.

        Raises:
            httpx.HTTPError: the server can't be reached, or does not run yet.
            UserError: the roster is not signed by the authority, is older than one that was seen before, or this client
                is not on it.
        """
        content = self.fetch(self.member, self.directory / names.CA, names.ROSTER)
        before, now = self._version(), self._signed(content)
        if now.version < before:
            raise UserError(
                f"the server gives version {now.version} of the roster, and this client has seen version {before}. It "
                "may try to bring back a removed client. Ask the operator."
            )
        if self.member.client in now.clients and now.version > before:
            with writing(self.directory):
                write_atomically(self.directory / names.ROSTER, content.decode(), mode=0o600)
        return self._with_own(now)

    def check_newest(self) -> None:
        """Raise a RemovedError if the newest roster, which may not be in force yet, lacks this client."""
        now = self._signed(self.fetch(self.member, self.directory / names.CA, names.LATEST))
        if now.version >= self._version():
            self._with_own(now)

    def _version(self) -> int:
        file = self.directory / names.ROSTER
        return self._signed(file.read_bytes()).version if file.exists() else 0

    def _verified(self, content: bytes) -> Roster:
        return self._with_own(self._signed(content))

    def _signed(self, content: bytes) -> Roster:
        try:
            signed = SignedRoster.model_validate_json(content)
        except ValidationError as error:
            raise UserError("the roster is not a file that fedcollm wrote. Ask the operator.") from error
        return signed.verified((self.directory / names.CA).read_bytes(), self.member.run)

    def _with_own(self, roster: Roster) -> Roster:
        """Return a roster that has this client's own key.

        Raises:
            RemovedError: the client was on an earlier roster.
            NotAdmittedError: it was on none.
            UserError: the roster has another key for this client.
        """
        client = self.member.client
        key = roster.clients.get(client)
        if key == self.own:
            return roster
        if key is not None:
            raise UserError(
                f"the roster has another key for client {client} than this directory. Use the directory whose request "
                "was admitted last."
            )
        if self._version():
            raise RemovedError(f"the operator has removed client {client} from run {self.member.run}. Nothing is sent.")
        raise NotAdmittedError(
            f"client {client} is not admitted yet. Give {self.directory / names.REQUEST} to the operator, and "
            "tell them the fingerprint that `deploy join` printed."
        )
