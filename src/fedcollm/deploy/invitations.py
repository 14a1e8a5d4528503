"""`fedcollm deploy join`: from an invitation to a client's directory, whose private keys never leave it.

An invitation and a request come from another party, over any channel. Both are read within bounds and by strict forms,
and nothing in them becomes a path before it has been checked.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from pydantic import StringConstraints, ValidationError

from fedcollm.config import RunConfig
from fedcollm.deploy import directories as names
from fedcollm.deploy.certificates import authority_fingerprint, private_pem
from fedcollm.deploy.containers import mounts
from fedcollm.deploy.directories import Membership, PublicKeys
from fedcollm.deploy.files import create, filled, read_bounded, unit_words
from fedcollm.deploy.fingerprints import grouped
from fedcollm.deploy.joined import joining
from fedcollm.deploy.ownership import check_owned
from fedcollm.deploy.roster import File, Name, SignedRoster
from fedcollm.errors import UserError
from fedcollm.runs.directory import CONFIG, parse_config_text

_LONGEST_BYTES = 2**20
T = TypeVar("T", bound=File)


class Invitation(File):
    """What a client is given to join a deployment. None of it is secret, but it must come from the operator.

    Attributes:
        membership: the client's id, the run, the server's address, and facts about the models.
        authority: the certificate of the deployment's authority, in PEM.
        config: the configuration of the run as the client gets it, in YAML.
        signature: ECDSA with SHA-384 of all of it by the authority's key, in hexadecimal. So whoever compares the
            authority's fingerprint has compared the configuration too.
    """

    membership: Membership
    authority: str
    config: str
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]*$", max_length=400)] = ""

    def signed_by(self, key: ec.EllipticCurvePrivateKey) -> "Invitation":
        """Return the invitation with the signature of the authority's key."""
        return self.model_copy(update={"signature": key.sign(self._content(), ec.ECDSA(hashes.SHA384())).hex()})

    def verify(self) -> None:
        """Check that the authority that the invitation names has signed it.

        Raises:
            UserError: it has not.
        """
        authority_fingerprint(self.authority.encode())
        key = cast(ec.EllipticCurvePublicKey, x509.load_pem_x509_certificate(self.authority.encode()).public_key())
        try:
            key.verify(bytes.fromhex(self.signature), self._content(), ec.ECDSA(hashes.SHA384()))
        except (InvalidSignature, ValueError) as error:
            raise UserError(
                f"the invitation of client {self.membership.client} is not signed by the authority that it names, so "
                "somebody may have changed it on its way. Ask the operator for the invitation again."
            ) from error

    def _content(self) -> bytes:
        parts = [self.membership.model_dump(mode="json"), self.authority, self.config]
        return b"fedcollm invitation 1\n" + json.dumps(parts, sort_keys=True).encode()


class Request(File):
    """A client's request to be admitted.

    Attributes:
        client: the client's id.
        run: the run.
        keys: the client's public keys.
        proof: Ed25519 signature of all of it by the client's signing key, in hexadecimal.
    """

    client: Name
    run: Name
    keys: PublicKeys
    proof: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]

    def signed(self) -> bytes:
        """Return what the proof signs and the fingerprint is taken of."""
        return _signed(self.client, self.run, self.keys)

    def fingerprint(self) -> str:
        """Return the fingerprint that both operators compare."""
        return grouped(self.signed())

    def check(self) -> None:
        """Check the keys and the proof that the sender has the signing key.

        Raises:
            UserError: a key is of another kind or written in another way than fedcollm does, or the proof is wrong.
        """
        try:
            node = load_pem_public_key(self.keys.node.encode())
            usual = isinstance(node, ec.EllipticCurvePublicKey) and isinstance(node.curve, ec.SECP384R1)
            if (
                not usual
                or node.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) != self.keys.node.encode()
            ):
                raise ValueError("not a key on P-384, as fedcollm writes it")
            signing = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.keys.signing))
            signing.verify(bytes.fromhex(self.proof), self.signed())
        except (InvalidSignature, ValueError) as error:
            raise UserError(
                f"the request of client {self.client} is not valid ({str(error) or 'the proof is wrong'}). Ask the "
                "client to run `fedcollm deploy join` again."
            ) from error


@dataclass(frozen=True)
class Keys:
    """The private keys of one client.

    Attributes:
        node: key that the client connects with.
        signing: key that the client signs with.
    """

    node: ec.EllipticCurvePrivateKey = field(repr=False)
    signing: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def make(cls) -> "Keys":
        """Return new keys."""
        return cls(ec.generate_private_key(ec.SECP384R1()), Ed25519PrivateKey.generate())

    def public(self) -> PublicKeys:
        """Return their public parts."""
        node = self.node.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return PublicKeys(node=node.decode(), signing=self.signing.public_key().public_bytes_raw().hex())

    def request(self, client: str, run: str) -> Request:
        """Return the request to be admitted with these keys."""
        public = self.public()
        proof = self.signing.sign(_signed(client, run, public)).hex()
        return Request(client=client, run=run, keys=public, proof=proof)


def _signed(client: str, run: str, keys: PublicKeys) -> bytes:
    return b"fedcollm request 1\n" + json.dumps([client, run, keys.node, keys.signing]).encode()


def read_invitation(file: Path) -> tuple[Invitation, RunConfig]:
    """Return an invitation and the configuration in it.

    Raises:
        UserError: the file can't be read, is no invitation or not signed by its authority, or the client could not take
            part with its configuration.
    """
    invitation = _read(file, Invitation)
    invitation.verify()
    config = parse_config_text(invitation.config, f"the configuration in {file}")
    names.refuse_healing(config)
    return invitation, config


def read_request(file: Path) -> Request:
    """Return a client's request, whose proof holds.

    Raises:
        UserError: the file can't be read, is no request, or its proof is wrong.
    """
    request = _read(file, Request)
    request.check()
    return request


def _read(file: Path, kind: type[T]) -> T:
    try:
        return kind.model_validate_json(read_bounded(file, _LONGEST_BYTES))
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part!s:.40}: " for part in first["loc"])
        command = "init" if kind is Invitation else "join"
        raise UserError(
            f"{file} is not a file that `fedcollm deploy {command}` wrote: {where}{first['msg']}. Ask for it again."
        ) from error


def join(invitation: Invitation, place: Path, before: Path | None = None) -> Request:
    """Make a client's directory, with new private keys, and return the request to hand to the server's operator.

    Args:
        invitation: the invitation that the client's owner accepted.
        place: the directory to make. It must be empty or not exist yet.
        before: the directory that this client has used in this run until now, whose memory is carried over; None if it
            joins the run for the first time.

    Raises:
        UserError: the directory is in use, can be changed by others or can't be written; or this user has joined the
            run as this client before, and `before` is not given.
    """
    if place.is_symlink() or (place.exists() and (not place.is_dir() or any(place.iterdir()))):
        raise UserError(f"{place} exists already. Choose another --out: keys that are in use are never overwritten.")
    if place.exists():
        check_owned(place)
    keys, member = Keys.make(), invitation.membership
    request = keys.request(member.client, member.run)
    with joining(member, place, before):
        write_client(place, invitation, keys)
        create(place / names.REQUEST, request.model_dump_json(indent=1))
    return request


def write_client(place: Path, invitation: Invitation, keys: Keys, roster: SignedRoster | None = None) -> None:
    """Write a client's directory.

    Raises:
        UserError: a file exists already, or can't be written.
    """
    create(place / names.NODE_KEY, private_pem(keys.node), secret=True)
    create(place / names.SIGNING_KEY, private_pem(keys.signing), secret=True)
    create(place / names.CA, invitation.authority)
    create(place / CONFIG, invitation.config)
    create(place / names.MEMBERSHIP, invitation.membership.model_dump_json(indent=1))
    if roster is not None:
        create(place / names.ROSTER, roster.model_dump_json())
    member, home = invitation.membership, place.resolve()
    program = Path(sys.executable).with_name("fedcollm")
    facts = unit_words(home=home, program=program, data=home / "data", cache=home / "state" / "cache")
    facts |= {"client": member.client, "run": member.run, **names.owner()}
    unit = filled("fedcollm-client.service", facts)
    create(place / "systemd" / "fedcollm-client.service", unit)
    facts["mounts"] = mounts(names.read_config(place), server=False)
    create(place / ".dockerignore", filled("dockerignore", facts))
    create(place / "compose.yaml", filled("client-compose.yaml", facts))
    create(place / "Dockerfile", filled("client-Dockerfile", facts))
