"""`fedcollm deploy init`: write everything that the parties of a federation need before the first round."""

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcollm.config import RunConfig
from fedcollm.config.paths import without_places
from fedcollm.data.catalogue import build_modality, load_pool
from fedcollm.data.partition import split
from fedcollm.deploy import directories as names
from fedcollm.deploy.admission import nodes_map
from fedcollm.deploy.bases import slm_digests
from fedcollm.deploy.certificates import Authority, authority_fingerprint, hosts, private_pem
from fedcollm.deploy.containers import mounts
from fedcollm.deploy.directories import Deployment, Membership, PublicKeys
from fedcollm.deploy.files import create, filled, unit_words
from fedcollm.deploy.invitations import Invitation, Keys, write_client
from fedcollm.deploy.roster import Roster, sign
from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.runs.build_clients import check_statistics, secured
from fedcollm.runs.directory import CONFIG, config_text
from fedcollm.runs.resolve import with_number

_AUTHORITY_DAYS, _LONGEST_NAME = 10 * 365, 100
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
class Choices:
    """What else `deploy init` was asked for.

    Attributes:
        demo: whether to make the clients' keys and directories too, for a trial on one machine.
        demo_data: whether to write each client's part of the preset's data into its directory too.
        plain_updates: whether the server may see every single client's update.
    """

    demo: bool = False
    demo_data: bool = False
    plain_updates: bool = False


def initialize(
    config: RunConfig, site: Site, out: Path, choices: Choices = Choices(), typed: RunConfig | None = None
) -> Deployment:
    """Make the authority, the server's directory, and an invitation for every client.

    Args:
        config: configuration of the run. Its clients are `federation.participants`, or 0, 1, ... up to `task.clients`.
        site: where the server will run.
        out: directory to write, which must be empty or not exist yet.
        choices: what else to make or to allow.
        typed: the same configuration with paths as they were typed, from which those of the clients are made; by
            default `config`.

    Raises:
        UserError: the configuration can't be deployed, and nothing was written; or a file can't be written.
    """
    named = config.federation.participants
    clients = [str(number) for number in range(config.task.clients or 0)] if named is None else named
    _check(config, site, clients, out, choices)
    config, for_clients = (
        one if one.task.clients else with_number(one, len(clients)) for one in (config, without_places(typed or config))
    )
    modality = _deployable(config)
    names.refuse_healing(config)
    _check_data(config, modality)
    keys = {client: Keys.make() for client in clients}
    public = {client: pair.public() for client, pair in keys.items()}
    secured(config, names.public_keys({client: pair.signing for client, pair in public.items()}))  # fails here
    run = f"{config.name}-{secrets.token_hex(8)}"
    authority = Authority.make(run, max(_AUTHORITY_DAYS, site.days))
    members = public if choices.demo or choices.demo_data else {}
    deployment = _deployment(run, site, clients, members, authority)
    members_know = {"facts": dict(modality.facts()), "base": slm_digests(config)}
    invitations = _invitations(deployment, config_text(for_clients), members_know, authority)
    parts = split(load_pool(config.task, config.seed), config.task, config.seed) if choices.demo_data else None
    _write_server(out, config, deployment, authority, site)
    for client, invitation in invitations.items():
        if not members:
            create(out / "invitations" / f"{client}.json", invitation.model_dump_json(indent=1))
            continue
        place = out / "clients" / client
        write_client(place, invitation, keys[client], deployment.roster)
        if parts is not None:
            create(place / "data" / "train.jsonl", modality.write_examples(parts.private[client]))
            create(place / "data" / "test.jsonl", modality.write_examples(parts.test))
    return deployment


def _deployment(
    run: str, site: Site, invited: Sequence[str], members: Mapping[str, PublicKeys], authority: Authority
) -> Deployment:
    """Return what the server knows, with the first roster."""
    roster = Roster(run=run, version=1, clients={client: pair.signing for client, pair in members.items()})
    return Deployment(
        run=run,
        host=site.host,
        port=site.port,
        superlink_port=site.superlink_port,
        invited=list(invited),
        clients=dict(members),
        roster=sign(roster, authority.key),
    )


def _invitations(
    deployment: Deployment, config: str, known: Mapping[str, Any], authority: Authority
) -> dict[str, Invitation]:
    """Return the invitation of each client, signed by the authority; `known` is what it says of the models."""
    address = f"{deployment.host}:{deployment.port}"
    members = {
        client: Membership(client=client, run=deployment.run, address=address, **known) for client in deployment.invited
    }
    certificate = authority.pem().decode()
    return {
        client: Invitation(membership=member, authority=certificate, config=config).signed_by(authority.key)
        for client, member in members.items()
    }


def _check(config: RunConfig, site: Site, clients: Sequence[str], out: Path, choices: Choices) -> None:
    """Refuse a deployment that would be unsafe or incomplete.

    Raises:
        UserError: one of the arguments is wrong.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already. Choose another --out: keys that are in use are never overwritten.")
    unit_words(out=out.resolve())
    if not clients:
        raise UserError(
            f"federation.participants {config.federation.participants}, task.clients {config.task.clients}: a "
            "deployment needs clients. Name them with --clients."
        )
    for name in (*clients, site.host, config.name):
        if not name or set(name) - _ALLOWED or name.startswith((".", "-")) or len(name) > _LONGEST_NAME:
            raise UserError(
                f"name {name!r}: use letters, digits, _, - and . only, begin with a letter, a digit or _, and "
                f"use at most {_LONGEST_NAME} signs."
            )
    if twice := [name for i, name in enumerate(clients) if name in clients[:i]]:
        raise UserError(f"name {twice[0]!r} occurs twice among the clients. Give each client a name of its own.")
    if choices.demo_data and config.federation.participants:
        raise UserError("--demo-data: the preset's parts have no names. Leave out --clients.")
    if choices.demo_data and config.task.is_own:
        raise UserError("--demo-data: your own data has no parts to write. Give each client its own data with --data.")
    if not config.federation.secure_aggregation.enabled and not choices.plain_updates:
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


def _check_data(config: RunConfig, modality: Modality) -> None:
    """Check that the operator's data is all that `deploy server` will need: a public part and a test set.

    Raises:
        UserError: it is not.
    """
    pool = load_pool(config.task, config.seed, private=False)
    parts = split(pool, config.task, config.seed, private=False)
    check_statistics(config, modality, parts.test[0])


def _write_server(out: Path, config: RunConfig, deployment: Deployment, authority: Authority, site: Site) -> None:
    """Write the authority's and the server's directories, and the README."""
    server = out / "server"
    create(out / "ca" / "ca.key", private_pem(authority.key), secret=True)
    create(out / "ca" / names.CA, authority.pem())
    certificate, key = authority.server(hosts(site.host), site.days)
    create(server / names.CERTIFICATE, certificate)
    create(server / names.SERVER_KEY, key, secret=True)
    certificate, key = authority.server(["localhost", "127.0.0.1"], _AUTHORITY_DAYS)  # never seen from outside
    create(server / names.SUPERLINK_CERTIFICATE, certificate)
    create(server / names.SUPERLINK_KEY, key, secret=True)
    create(server / names.CA, authority.pem())
    create(server / names.SECRET, os.urandom(32), secret=True)
    create(server / CONFIG, config_text(config))
    create(server / names.DEPLOYMENT, deployment.model_dump_json(indent=1), secret=True)
    create(server / names.NODES, nodes_map(deployment), secret=True)
    create(server / "public" / names.LATEST, deployment.roster.model_dump_json())
    home = server.resolve()
    program = Path(sys.executable).with_name("fedcollm")
    facts = unit_words(home=home, program=program, cache=home / "state" / "cache", state=home / "state")
    facts |= {"run": deployment.run, "host": site.host, "port": str(site.port), **names.owner()}
    facts["superlink_port"] = str(site.superlink_port)
    facts["mounts"] = mounts(config, server=True)
    create(server / ".dockerignore", filled("dockerignore", facts))
    for name in ("nginx.conf", "compose.yaml", "Dockerfile"):
        create(server / name, filled(name, facts))
    create(server / "systemd" / "fedcollm-server.service", filled("fedcollm-server.service", facts))
    create(out / "README.txt", _readme(out.resolve(), deployment, authority, facts))


def _readme(out: Path, deployment: Deployment, authority: Authority, facts: Mapping[str, str]) -> str:
    """Return what the operator is told: what to hand to whom, and what to do next."""
    name = "README-demo.txt" if deployment.clients else "README.txt"
    lines = "\n".join(
        filled(f"{name}.client", {"client": client, "out": out}).rstrip() for client in deployment.invited
    )
    fingerprint = authority_fingerprint(authority.pem())
    return filled(name, {**facts, "out": out, "client_lines": lines, "fingerprint": fingerprint})
