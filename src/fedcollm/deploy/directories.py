"""The two kinds of directory that `fedcollm deploy init` writes, and reading them.

OUT/README.txt           who gets what
OUT/ca/                  the certificate authority's key and certificate: keep it offline
OUT/server/              stays on the server's machine
config.yaml            the run's configuration
deployment.json        run, addresses, public keys of every client
ca.crt server.crt server.key superexec.key
nginx.conf             the only way in: TLS, and Flower's node interface alone
systemd/ compose.yaml Dockerfile
state/ logs/           written by the server
OUT/clients/ID/          handed to one client's operator
config.yaml            the same configuration
membership.json        own id, run, the server's address, the roster of signing keys
ca.crt node.key signing.key
systemd/
state/                 written by the client
adapter/               with client.personal, after the last round: its own SLM's adapter, in PEFT's format
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedcollm.errors import UserError

DEPLOYMENT, MEMBERSHIP = "deployment.json", "membership.json"
CA, CERTIFICATE, SERVER_KEY, SECRET = "ca.crt", "server.crt", "server.key", "superexec.key"
NODE_KEY, SIGNING_KEY = "node.key", "signing.key"

Port = Annotated[int, Field(ge=1, le=65535)]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PublicKeys(_File):
    """One client's, as the server knows them."""

    node: str
    """of the key that it connects with, PEM"""
    signing: str
    """of the key that it signs with, 32 bytes in hexadecimal"""


class Deployment(_File):
    """What the server knows of its clients."""

    run: str
    """identity of the run, random"""
    host: str
    """name or address by which clients reach the server"""
    port: Port
    """open to clients"""
    superlink_port: Port
    """of this machine alone"""
    clients: dict[str, PublicKeys]
    """id to public keys"""


class Membership(_File):
    """What a client knows of the federation."""

    client: str
    """own id"""
    run: str
    """the only run that this client takes part in"""
    address: str
    """HOST:PORT of the server"""
    roster: dict[str, str]
    """id to public signing key of every client, 32 bytes in hexadecimal"""
    facts: dict[str, Annotated[int, Field(ge=1)]]
    """what the modality of a client, which has the SLM only, must know of both models; see `Modality.facts`"""


T = TypeVar("T", bound=_File)


def read(directory: Path, name: str, kind: type[T]) -> T:
    """One of the JSON files.

    Raises:
        UserError: it is missing or malformed.
    """
    try:
        return kind.model_validate_json((directory / name).read_text(encoding="utf-8"))
    except OSError as error:
        whose = "server" if name == DEPLOYMENT else "client"
        raise UserError(
            f"{directory} is no {whose}'s directory: {name} can't be read ({error.strerror}). Give a directory that "
            "`fedcollm deploy init` wrote."
        ) from error
    except ValidationError as error:
        raise UserError(f"{directory / name} is malformed: {error.errors()[0]['msg']}. Take a fresh copy.") from error


def node_key(directory: Path) -> EllipticCurvePrivateKey:
    """The key that a client connects with."""
    key = _private_key(directory / NODE_KEY)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise UserError(f"{directory / NODE_KEY} is not an elliptic curve key. Take a fresh copy.")
    return key


def signing_key(directory: Path) -> Ed25519PrivateKey:
    """The key that a client signs with."""
    key = _private_key(directory / SIGNING_KEY)
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{directory / SIGNING_KEY} is not an Ed25519 key. Take a fresh copy.")
    return key


def public_keys(roster: Mapping[str, str]) -> dict[str, Ed25519PublicKey]:
    """Signing keys as objects.

    Raises:
        UserError: a key is malformed.
    """
    keys = {}
    for client, text in roster.items():
        try:
            keys[client] = Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
        except ValueError as error:
            raise UserError(
                f"the roster's key of client {client} is malformed: {text!r}. Take a fresh copy."
            ) from error
    return keys


def _private_key(file: Path) -> object:
    try:
        return load_pem_private_key(file.read_bytes(), None)
    except OSError as error:
        raise UserError(
            f"{file} can't be read ({error.strerror}). It came with the directory: copy it again."
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is not a private key in PEM. Take a fresh copy.") from error


def check_private(file: Path) -> None:
    """Refuse a secret that other users of this machine may read.

    Raises:
        UserError: it is missing, or its permissions are too wide.
    """
    try:
        mode = file.stat().st_mode & 0o777
    except OSError as error:
        raise UserError(
            f"{file} can't be read ({error.strerror}). It came with the directory: copy it again."
        ) from error
    if os.name == "posix" and mode & 0o077:  # Windows has access lists in place of these bits
        raise UserError(f"{file} can be read by others (mode {mode:o}). Run: chmod 600 {file}")
