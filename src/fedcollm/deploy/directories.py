"""The directories of a deployment, and functions that read them.

`fedcollm deploy init` makes OUT:

    OUT/README.txt           what to hand to whom
    OUT/ca/                  the certificate authority's key and certificate; to be kept offline
    OUT/invitations/ID.json  handed to the operator of one client; nothing in it is secret
    OUT/server/              stays on the server's machine
      config.yaml            the configuration of the run
      deployment.json        the run, its addresses, the public keys of every client, and the signed roster
      ca.crt server.crt server.key superlink.crt superlink.key superexec.key
      nginx.conf nodes.map   the only way in: TLS, Flower's interface for nodes, and only for keys that were admitted
      public/                the signed rosters that nginx serves
      systemd/ compose.yaml Dockerfile
      state/ logs/           written by the server

`fedcollm deploy join` makes a client's directory, at the client:

    config.yaml            the configuration that the client accepted
    membership.json        the client's id, the run, the server's address
    request.json           the client's public keys, for the server's operator
    ca.crt node.key signing.key
    systemd/ compose.yaml Dockerfile
    roster.json            the signed roster, fetched from the server
    state/ logs/           written by the client: state/spent.json and opened.json, what it has given, which must never
                           be lost; state/failures.log, why trainings failed, for its operator only; logs/audit.jsonl,
                           what left
    continued.json         where the client goes on, if it has joined again with `--continue` and this directory
    adapter/               with client.personal, after the last round: the client's own adapter, in PEFT's format
    final/                 when the run is finished: the final adapter, the tokenizer, a model card and a report

With `--demo`, `init` writes the clients' directories too, to OUT/clients/ID.
"""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import Field, StringConstraints, ValidationError

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.deploy.roster import File, Name, SignedRoster
from fedcollm.errors import UserError, in_section
from fedcollm.runs.directory import CONFIG, parse_config

DEPLOYMENT, MEMBERSHIP, REQUEST, ROSTER = "deployment.json", "membership.json", "request.json", "roster.json"
CA, CERTIFICATE, SERVER_KEY, SECRET = "ca.crt", "server.crt", "server.key", "superexec.key"
NODES, LATEST = "nodes.map", "latest.json"
SUPERLINK_CERTIFICATE, SUPERLINK_KEY = "superlink.crt", "superlink.key"
NODE_KEY, SIGNING_KEY = "node.key", "signing.key"

#: User and group of a container if this machine has no numeric user ids, as on Windows.
_FIRST_USER = 1000

_Word = Annotated[str, StringConstraints(max_length=1000)]
Port = Annotated[int, Field(ge=1, le=65535)]


class PublicKeys(File):
    """The public keys of one client.

    Attributes:
        node: public part of the key that the client connects with, in PEM.
        signing: public part of the key that the client signs with, 32 bytes in hexadecimal.
    """

    node: str
    signing: str


class Deployment(File):
    """What the server knows about the deployment.

    Attributes:
        run: identity of the run, which is random.
        host: name or address by which clients reach the server.
        port: port that is open to clients.
        superlink_port: port of the SuperLink, which can be reached from the server's machine only.
        invited: ids of the clients that may be admitted, in the order of the federation.
        clients: client id to public keys of those that were admitted, in the same order.
        roster: the signed roster of those clients.
        removed: public keys of those that were removed, which are never admitted again.
        former: ids of the clients that were removed at least once.
    """

    run: Name
    host: Name
    port: Port
    superlink_port: Port
    invited: list[Name]
    clients: dict[Name, PublicKeys]
    roster: SignedRoster
    removed: list[PublicKeys] = Field(default_factory=list[PublicKeys])
    former: list[Name] = Field(default_factory=list[Name])


class Membership(File):
    """What a client knows about the federation.

    Attributes:
        client: the client's id.
        run: the only run that the client takes part in.
        address: HOST:PORT of the server.
        facts: what a client's modality must know about both models, since the client has only the SLM; see
            `Modality.facts`.
        base: digests of the base SLM, see `bases.slm_digests`; none if its weights follow from the run's seed.
    """

    client: Name
    run: Name
    address: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+:[0-9]{1,5}$", max_length=300)]
    facts: dict[_Word, Annotated[int, Field(ge=1, le=2**40)] | Annotated[list[_Word], Field(max_length=10_000)]]
    base: dict[_Word, Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default_factory=dict[str, str]
    )


T = TypeVar("T", bound=File)


def owner() -> dict[str, str]:
    """Return the user and the group of a container that runs as this process does."""
    numbers = (getattr(os, name, lambda: _FIRST_USER)() for name in ("getuid", "getgid"))
    return dict(zip(("user", "group"), map(str, numbers), strict=True))


def read(directory: Path, name: str, kind: type[T]) -> T:
    """Return the content of a JSON file.

    Args:
        directory: directory of a server or a client.
        name: name of the file.
        kind: what the file holds.

    Raises:
        UserError: the file is missing or malformed.
    """
    try:
        return kind.model_validate_json((directory / name).read_text(encoding="utf-8"))
    except OSError as error:
        whose = "server" if name == DEPLOYMENT else "client"
        raise UserError(
            f"{directory} is not a {whose}'s directory: {name} can't be read ({error.strerror}). Give a directory that "
            "`fedcollm deploy init` (for the server) or `fedcollm deploy join` (for a client) wrote."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise UserError(
            f"{directory / name} is malformed: {where}{first['msg']}. Restore it from a copy, and use the "
            "version of fedcollm that made the deployment."
        ) from error


def read_config(directory: Path) -> RunConfig:
    """Return the configuration in the directory of a server or a client.

    Raises:
        UserError: the file is missing or malformed, or the parties could not work together with it.
    """
    config = parse_config(directory / CONFIG)
    refuse_healing(config)
    return config


def refuse_healing(config: RunConfig) -> None:
    """Refuse a configuration that lets each party heal or pretrain the SLM itself: another machine gets other bits.

    Raises:
        UserError: says how to make the SLM once.
    """
    if config.slm.pretrain_epochs:
        raise UserError(
            f"slm.pretrain_epochs {config.slm.pretrain_epochs}: clients have no public data to pretrain an SLM on, and "
            "each machine would make another one. Make it once: fedcollm run CONFIG --set federation.participants=[] "
            "--set federation.rounds=1 --out RUN. Give the directory RUN/base/slm to every client, and set slm.source "
            "to it and slm.pretrain_epochs: 0."
        )
    if config.slm.heal is not None:
        from fedcollm.runs.shrink_plan import refuse_uncut  # imported here because it loads torch

        with in_section("slm"):
            refuse_uncut(config.slm)
        raise UserError(
            "slm.heal: each machine would heal an SLM of its own, with other weights than the others, so that their "
            f"adapters do not fit together. Make it once: {_shrink_command(config.slm)}. Give the directory to every "
            "client, and set slm.source to it, slm.layers: null, slm.heal: null"
            + (", and server.layer_transfer: 0." if config.server.layer_transfer else ".")
        )


def _shrink_command(slm: ModelConfig) -> str:
    """Return the command that makes the base of an SLM with `heal`."""
    kept = slm.layers
    layers = "all" if kept is None else str(kept)
    if isinstance(kept, list):
        layers = ",".join(map(str, kept)) + "," * (len(kept) == 1)
    own = slm.model_dump(mode="json", include={"layer_choice", "mlp_share", "heal"}, exclude_defaults=True)
    own |= {f"heal.{key}": value for key, value in own.pop("heal").items()}
    settings = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in own.items()]
    words = [word for setting in settings for word in ("--set", setting)]
    return shlex.join(["fedcollm", "shrink", slm.source, "--layers", layers, *words, "--out", "DIR"])


def node_key(directory: Path) -> EllipticCurvePrivateKey:
    """Return the private key that a client connects with.

    Raises:
        UserError: the key can't be read, or is of another kind.
    """
    key = _private_key(directory / NODE_KEY)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise UserError(f"{directory / NODE_KEY} is not an elliptic curve key. Restore it from a copy.")
    return key


def signing_key(directory: Path) -> Ed25519PrivateKey:
    """Return the private key that a client signs with.

    Raises:
        UserError: the key can't be read, or is of another kind.
    """
    key = _private_key(directory / SIGNING_KEY)
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{directory / SIGNING_KEY} is not an Ed25519 key. Restore it from a copy.")
    return key


def public_keys(roster: Mapping[str, str]) -> dict[str, Ed25519PublicKey]:
    """Return client id to public signing key.

    Args:
        roster: client id to 32 bytes in hexadecimal.

    Raises:
        UserError: a key is malformed.
    """
    keys: dict[str, Ed25519PublicKey] = {}
    for client, text in roster.items():
        try:
            keys[client] = Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
        except ValueError as error:
            raise UserError(
                f"the roster's key of client {client} is malformed: {text!r}. Restore it from a copy."
            ) from error
    return keys


def _private_key(file: Path) -> object:
    try:
        return load_pem_private_key(file.read_bytes(), None)
    except OSError as error:
        raise UserError(
            f"{file} can't be read ({error.strerror}). It belongs to this directory: restore it from a copy."
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is not a private key in PEM. Restore it from a copy.") from error


def check_private(file: Path) -> None:
    """Refuse a secret that other users of this machine can read.

    Raises:
        UserError: the file is missing, or its permissions are too wide.
    """
    try:
        mode = file.stat().st_mode & 0o777
    except OSError as error:
        raise UserError(
            f"{file} can't be read ({error.strerror}). It belongs to this directory: restore it from a copy."
        ) from error
    if os.name == "posix" and mode & 0o077:  # Windows has access lists instead of these bits
        raise UserError(f"{file} can be read by others (mode {mode:o}). Run: chmod 600 {file}")
