"""`fedcollm deploy client`: one owner of private data, who is connected to the server until the program is stopped."""

import contextlib
import functools
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.data.catalogue import build_client_modality
from fedcollm.data.client_files import load_client
from fedcollm.data.pool import Split
from fedcollm.deploy import directories as names
from fedcollm.deploy.audit import Audited
from fedcollm.deploy.bases import check_slm
from fedcollm.deploy.directories import Membership
from fedcollm.deploy.joined import refuse_continued
from fedcollm.deploy.member import Member
from fedcollm.deploy.outcome import Outcome
from fedcollm.deploy.ownership import check_directory
from fedcollm.deploy.remembered import OPENED, SPENT, Remembered
from fedcollm.deploy.roster import Roster
from fedcollm.deploy.roster_keeper import RosterKeeper
from fedcollm.errors import UserError
from fedcollm.federation.answered import LastAnswer
from fedcollm.messages import FinishRequest, adapter_bytes
from fedcollm.modalities.base import Modality
from fedcollm.models.adapters import read_adapter, resolve_device
from fedcollm.progress import say
from fedcollm.runs.build_clients import (
    ClientData,
    broadcast_form,
    build_client,
    clean_examples,
    secure_client,
    secured,
)
from fedcollm.runs.build_models import build_slm, set_backends
from fedcollm.runs.estimate import fit_client
from fedcollm.runs.memory_limit import limit_in_words
from fedcollm.seeding import RunIdentity
from fedcollm.storage import append_to, locked, make_directory, write_atomically, writing
from fedcollm.transports.endpoint import Answers, ClientEndpoint
from fedcollm.transports.flower.node import Service, connect
from fedcollm.transports.wire import longest_message

_LONGEST_SECONDS = 86_400.0


def private_examples(config: RunConfig, modality: Modality, path: Path) -> tuple[list[Any], list[Any]]:
    """Return a client's own training examples and test examples.

    Args:
        config: configuration of the run.
        modality: the client's modality, which knows the classes.
        path: a file of training examples, or a directory with a `train` file and optionally a `test` file.

    Raises:
        UserError: there are no usable examples.
    """
    if not path.exists():
        raise UserError(f"--data {path}: no such file or directory. Give this client's own examples.")
    pool = load_client(config.task, path, modality)
    for note in pool.notes:
        say(note)
    return list(pool.train), list(pool.test or ())


def _without_start(config: RunConfig) -> RunConfig:
    """Return a configuration in which the SLM starts from no file: a client gets θ from the server in every round."""
    return changed(config, {"slm.adapter.start": None}) if config.slm.adapter.start is not None else config


def _within_limit(config: RunConfig, examples: list[Any], test: list[Any], limit_bytes: int) -> RunConfig:
    """Return a configuration with which this client fits into a memory limit; only how it computes is changed.

    Raises:
        UserError: not even one example at a time fits.
    """
    limited = fit_client(config, Split([], {"": examples}, test), limit_bytes)
    say(limit_in_words(limited))
    return changed(config, {key: value for key, value in limited.items() if "." in key})


def build_answering(
    directory: Path, data: Path, answer_after: float = 0.0, limit_bytes: int | None = None
) -> ClientEndpoint:
    """Return this client, ready to answer requests in bytes. It takes part with the roster on its disk, if any.

    Args:
        directory: the client's directory.
        data: the client's examples: a file or a directory.
        answer_after: answers to requests to train leave after whole multiples of so many seconds.
        limit_bytes: memory that this process may take; None without a limit.

    Raises:
        UserError: the directory, the data or the model is not usable.
    """
    membership = names.read(directory, names.MEMBERSHIP, Membership)
    config, key = _without_start(names.read_config(directory)), names.signing_key(directory)
    resolve_device(config.device)  # before anything is loaded
    modality = build_client_modality(config.task, config.slm, membership.facts)
    examples, test = private_examples(config, modality, data)
    say(f"client {membership.client} of run {membership.run}: {len(examples)} examples")
    state = directory / "state"
    if limit_bytes is not None:
        config = _within_limit(config, examples, test, limit_bytes)
    set_backends(config)
    check_slm(config, membership.base)
    slm = build_slm(config, modality, [], state / "base")
    examples, note = clean_examples(config, membership.client, examples, modality, slm)
    if note:
        say(note)
    spent: Remembered[int | str] = Remembered(state / SPENT)
    journal = functools.partial(_append, state / "failures.log")
    update, vector = LastAnswer(state / "update"), LastAnswer(state / "vector")
    opened: Remembered[list[str]] = Remembered(state / OPENED)
    own, start = directory / "adapter", read_adapter(slm)
    part = ClientData(modality, slm, examples, test, own, spent, journal=journal, start=start)
    form = broadcast_form(config, modality, slm, examples)

    def build(roster: Roster) -> Answers:
        keys = names.public_keys(roster.clients)
        identity = RunIdentity(membership.run, config.seed)
        client = build_client(config, identity, membership.client, part, list(keys))
        settings = secured(config, keys, sum(tensor.numel() for tensor in form.values()))
        return client if settings is None else secure_client(config, client, settings, key, opened, vector)

    keeper = RosterKeeper(directory, membership, key.public_key().public_bytes_raw().hex())
    outcome = Outcome(directory, membership, config, slm, len(examples))

    def finish(request: FinishRequest) -> None:
        outcome.save(request)
        update.forget()
        vector.forget()

    member = Member(keeper, build, finish)
    if (kept := keeper.kept()) is not None:
        member.use(kept)
    most = longest_message(adapter_bytes(form))
    return ClientEndpoint(membership.client, member, most, member.finish, answer_after, sent=update)


def _append(file: Path, line: str) -> None:
    """Append a line, with the time in UTC, to a file that only its owner can read. A full disk loses the line."""
    with contextlib.suppress(OSError), os.fdopen(append_to(file), "a", encoding="utf-8") as stream:
        stream.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")


def serve(
    directory: Path,
    data: Path,
    stopped: threading.Event | None = None,
    *,
    answer_after: float = 0.0,
    limit_bytes: int | None = None,
) -> bool:
    """Connect to the server and answer its requests until the run is finished or this client is stopped.

    Args:
        directory: the client's directory.
        data: the client's examples: a file or a directory.
        stopped: is set to stop the client; None to run until the process is interrupted.
        answer_after: as in `build_answering`.
        limit_bytes: as in `build_answering`.

    Returns:
        Whether the run is finished.

    Raises:
        UserError: `answer_after` is no number of seconds, the directory, the data or the model is not usable, the
            server's certificate is not accepted here, or the server does not accept this client.
    """
    if not 0 <= answer_after <= _LONGEST_SECONDS:
        raise UserError(f"--answer-after {answer_after:g}: give a number of seconds from 0 to {_LONGEST_SECONDS:g}.")
    membership = names.read(directory, names.MEMBERSHIP, Membership)
    check_directory(directory)
    refuse_continued(directory)
    with writing(directory):
        make_directory(directory / "state")
    with locked(directory / "state"):
        answering = build_answering(directory, data, answer_after, limit_bytes)
        member = cast(Member, answering.client)
        member.stopped = stopped or threading.Event()
        answering.wait = member.stopped.wait
        if not answer_after:
            say("answers leave as soon as they are ready, so their time tells how long they took; see --answer-after")
        member.wait()
        _answer_until_stopped(directory, membership, answering, member)
    return member.finished


def _answer_until_stopped(directory: Path, membership: Membership, answering: ClientEndpoint, member: Member) -> None:
    """Keep the client connected until it is stopped.

    Raises:
        UserError: the server does not accept it, with the reason.
    """
    key, number = names.node_key(directory), directory / "state" / "node"
    node = connect(membership.address, str(directory / names.CA), key, answering.limit_bytes)
    say(f"connecting to {membership.address}")
    known = int(number.read_text(encoding="utf-8")) if number.exists() else None
    audited = Audited(answering, directory / "logs" / "audit.jsonl")

    def connected(value: int) -> None:
        write_atomically(number, str(value), mode=0o600)

    try:
        Service(node, audited, known, connected, stopped=member.stopped).run()
    except UserError as error:
        raise member.explain(error) from error
    if member.ended is not None:
        raise member.ended
