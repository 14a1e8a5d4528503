"""`fedcollm deploy init`: write everything that the parties of a federation need before the first round."""

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedcollm.config import RunConfig
from fedcollm.config.paths import without_places
from fedcollm.data.catalogue import build_modality, load_pool
from fedcollm.data.partition import split
from fedcollm.deploy import directories as names
from fedcollm.deploy.certificates import Authority, private_pem
from fedcollm.deploy.directories import Deployment, Membership, PublicKeys
from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.runs.build_clients import secured
from fedcollm.runs.directory import CONFIG, config_text
from fedcollm.runs.resolve import with_number

#: User and group of the server's container if this machine has no numeric user ids, as on Windows.
_FIRST_USER = 1000
_ALLOWED = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


@dataclass(frozen=True)
class Site:
    """Where the server will run.

    Attributes:
        host: name or address by which clients reach the server.
        port: port that is open to clients.
        superlink_port: port of the SuperLink, which can be reached from the server's machine only.
        days: how long the server's certificate is valid.
    """

    host: str
    port: int = 9443
    superlink_port: int = 9093
    days: int = 365


@dataclass(frozen=True)
class _Keys:
    """The private keys of one client.

    Attributes:
        node: key that the client connects with.
        signing: key that the client signs with.
    """

    node: ec.EllipticCurvePrivateKey
    signing: Ed25519PrivateKey

    @classmethod
    def make(cls) -> "_Keys":
        return cls(ec.generate_private_key(ec.SECP384R1()), Ed25519PrivateKey.generate())

    def public(self) -> PublicKeys:
        node = self.node.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return PublicKeys(node=node.decode(), signing=self.signing.public_key().public_bytes_raw().hex())


def initialize(
    config: RunConfig,
    site: Site,
    out: Path,
    *,
    demo_data: bool = False,
    plain_updates: bool = False,
    typed: RunConfig | None = None,
) -> Deployment:
    """Make certificates, keys and configurations for the server and every client.

    Args:
        config: configuration of the run. Its clients are `federation.participants`, or 0, 1, ... up to `task.clients`.
        site: where the server will run.
        out: directory to write, which must be empty or not exist yet.
        demo_data: whether to write each client's part of the preset's data into its directory too, for a trial.
        plain_updates: whether the server may see every single client's update.
        typed: the same configuration with paths as they were typed, from which those of the clients are made; by
            default `config`.

    Raises:
        UserError: the configuration can't be deployed, and nothing was written; or a file can't be written.
    """
    named = config.federation.participants
    clients = [str(number) for number in range(config.task.clients or 0)] if named is None else named
    _check(config, site, clients, out, demo_data, plain_updates)
    names.refuse_healing(config)
    config, for_clients = (
        one if one.task.clients else with_number(one, len(clients)) for one in (config, without_places(typed or config))
    )
    modality = _deployable(config)
    run, keys = f"{config.name}-{secrets.token_hex(8)}", {client: _Keys.make() for client in clients}
    public = {client: pair.public() for client, pair in keys.items()}
    deployment = Deployment(run=run, host=site.host, port=site.port, superlink_port=site.superlink_port, clients=public)
    roster = {client: pair.signing for client, pair in public.items()}
    secured(config, names.public_keys(roster))  # fails here rather than at the first round
    authority = Authority.make(run, max(10 * 365, site.days))
    parts = split(load_pool(config.task, config.seed), config.task, config.seed) if demo_data else None
    _write_server(out, config, deployment, authority, site)
    for client, pair in keys.items():
        membership = Membership(
            client=client,
            run=run,
            address=f"{site.host}:{site.port}",
            roster=roster,
            facts=modality.facts(),
        )
        place = out / "clients" / client
        _write_client(place, for_clients, membership, pair, authority)
        if parts is not None:
            _write(place / "data" / "train.jsonl", modality.write_examples(parts.private[client]))
            _write(place / "data" / "test.jsonl", modality.write_examples(parts.test))
    return deployment


def _check(
    config: RunConfig, site: Site, clients: Sequence[str], out: Path, demo_data: bool, plain_updates: bool
) -> None:
    """Refuse a deployment that would be unsafe or incomplete.

    Raises:
        UserError: one of the arguments is wrong.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already. Choose another --out: keys that are in use are never overwritten.")
    if not clients:
        raise UserError(
            f"federation.participants {config.federation.participants}, task.clients {config.task.clients}: a "
            "deployment needs clients. Name them with --clients."
        )
    for name in (*clients, site.host):
        if not name or set(name) - _ALLOWED or name.startswith((".", "-")):
            raise UserError(
                f"name {name!r}: use letters, digits, _, - and . only, and begin with a letter, a digit or _."
            )
    if twice := [name for i, name in enumerate(clients) if name in clients[:i]]:
        raise UserError(f"name {twice[0]!r} occurs twice among the clients. Give each client a name of its own.")
    if demo_data and config.federation.participants:
        raise UserError("--demo-data: the preset's parts have no names. Leave out --clients.")
    if demo_data and config.task.is_own:
        raise UserError("--demo-data: your own data has no parts to write. Give each client its own data with --data.")
    if not config.federation.secure_aggregation.enabled and not plain_updates:
        raise UserError(
            "federation.secure_aggregation is false: the server would see every single client's update, from which "
            "training data can be reconstructed. Give --set federation.secure_aggregation=true, or "
            "--unsafe-plain-updates."
        )


def _deployable(config: RunConfig) -> Modality:
    """Return the modality for the SLM.

    Raises:
        UserError: the two models don't fit together, a client could not read its examples from files, or it would have
            another frozen half of the adapter than the server.
    """
    if config.slm.adapter.start is not None and config.slm.adapter.freeze_a:
        raise UserError(
            f"slm.adapter.start: {config.slm.adapter.start} has another A than the clients, which with "
            "slm.adapter.freeze_a never receive it. Set slm.adapter.freeze_a: false, or slm.adapter.start: null."
        )
    across = config.server.distillation.across_tokenizers
    modality = build_modality(config.task, config.slm, config.llm, across).of("slm")
    try:
        modality.write_examples([])
    except UserError as error:
        raise UserError(f"task.name {config.task.name} can't be deployed: {error}") from error
    return modality


def _write_server(out: Path, config: RunConfig, deployment: Deployment, authority: Authority, site: Site) -> None:
    """Write the authority's and the server's directories, and the README."""
    server = out / "server"
    _write(out / "ca" / "ca.key", private_pem(authority.key), secret=True)
    _write(out / "ca" / names.CA, authority.pem())
    certificate, key = authority.server(list(dict.fromkeys([site.host, "localhost", "127.0.0.1"])), site.days)
    _write(server / names.CA, authority.pem())
    _write(server / names.CERTIFICATE, certificate)
    _write(server / names.SERVER_KEY, key, secret=True)
    _write(server / names.SECRET, os.urandom(32), secret=True)
    _write(server / CONFIG, config_text(config))
    _write(server / names.DEPLOYMENT, deployment.model_dump_json(indent=1))
    facts = {
        "run": deployment.run,
        "host": site.host,
        "port": site.port,
        "superlink_port": site.superlink_port,
        "directory": server.resolve(),
        "program": Path(sys.executable).with_name("fedcollm"),
        "user": getattr(os, "getuid", lambda: _FIRST_USER)(),
        "group": getattr(os, "getgid", lambda: _FIRST_USER)(),
    }
    for name in ("nginx.conf", "compose.yaml", "Dockerfile"):
        _write(server / name, _filled(name, facts))
    _write(server / "systemd" / "fedcollm-server.service", _filled("fedcollm-server.service", facts))
    lines = [f"clients/{client}/  For client {client}:  fedcollm deploy client DIRECTORY --data DATA"
             for client in deployment.clients]  # fmt: skip
    readme = facts | {"client_lines": "\n".join(lines) + "\n", "directory": out.resolve()}
    _write(out / "README.txt", _filled("README.txt", readme))


def _write_client(place: Path, config: RunConfig, membership: Membership, keys: _Keys, authority: Authority) -> None:
    """Write one client's directory."""
    _write(place / names.CA, authority.pem())
    _write(place / names.NODE_KEY, private_pem(keys.node), secret=True)
    _write(place / names.SIGNING_KEY, private_pem(keys.signing), secret=True)
    _write(place / CONFIG, config_text(config))
    _write(place / names.MEMBERSHIP, membership.model_dump_json(indent=1))
    facts = {"client": membership.client, "run": membership.run}
    _write(place / "systemd" / "fedcollm-client.service", _filled("fedcollm-client.service", facts))


def _filled(name: str, facts: Mapping[str, Any]) -> str:
    """Return the template with this name, its placeholders replaced by these values.

    systemd would read `%` in a value as the start of a specifier.
    """
    if name.endswith(".service"):
        facts = {key: str(value).replace("%", "%%") for key, value in facts.items()}
    return Template((files("fedcollm.deploy") / "templates" / name).read_text(encoding="utf-8")).substitute(facts)


def _write(file: Path, content: str | bytes, secret: bool = False) -> None:
    """Write a new file. Only its owner can read a secret, or enter a directory that is made here.

    Raises:
        UserError: the file can't be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise UserError(f"{file} can't be written: {error.strerror}. Choose another --out.") from error
