"""The smallest federation that a run can have, with its clients behind a `MemoryLink`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.transports.memory_link import DEADLINES, MemoryLink

from fedcollm.config import RunConfig
from fedcollm.config.loading import load_config
from fedcollm.data.catalogue import base_models, load_pool
from fedcollm.data.partition import split
from fedcollm.data.pool import Pool
from fedcollm.deploy.remembered import Remembered
from fedcollm.federation.answered import LastAnswer
from fedcollm.federation.client import Client
from fedcollm.messages import (
    PROTOCOL_VERSION,
    Adapter,
    Answer,
    PhaseAnswer,
    Request,
    RoundRecord,
    TrainRequest,
    adapter_bytes,
)
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.task import TextTask
from fedcollm.models.adapters import read_adapter
from fedcollm.models.pretrained import load_tokenizer
from fedcollm.runs import directory as run_directory
from fedcollm.runs.build import Inputs, Remote
from fedcollm.runs.build_clients import ClientData, broadcast_form, build_client, secure_client, secured
from fedcollm.runs.build_models import build_model
from fedcollm.runs.runner import rounds
from fedcollm.seeding import RunIdentity
from fedcollm.transports.endpoint import ClientEndpoint
from fedcollm.transports.flower.transport import Deadlines
from fedcollm.transports.wire import decode, encode, longest_message

RUN = "small-0123"


def small_config(models: dict[str, str], data: Path, **changes: Any) -> RunConfig:
    """Two rounds of four clients with 4, 8, 12 and 16 examples, without distillation."""
    columns = {"prompt": "{text} is a", "answer": "kind", "choices": ["colour", "animal"]}
    sizes = {"private_size": 10, "public_size": 8, "unlabelled_size": 0, "test_size": 12}
    values: dict[str, Any] = {
        "name": "small",
        "task": {"name": "custom", "path": str(data), "format": columns, "clients": 4, **sizes},
        "llm": {"source": models["llm"]},
        "slm": {"source": models["slm"], "layers": None, "heal": None},
        "client": {"learning_rate": 1e-2, "max_grad_norm": None},
        "server": {"epochs": 0},
        "federation": {"rounds": 2},
        "evaluation": {"clients": "every"},
    }
    return load_config("icd10", **values, **{"task.partition.kind": "quantity", **changes})


@functools.cache
def shared_slm(source: str) -> tuple[peft.PeftModel, Adapter]:
    """One SLM for all clients, as they work one after the other, and its adapter before the first round."""
    config = load_config("icd10", **{"slm.source": source, "slm.layers": None, "slm.heal": None})
    slm = build_model(config, "slm", base_models(config.task), [], Path())  # pyright: ignore[reportArgumentType]
    return slm, read_adapter(slm)


@dataclass
class Small:
    """A federation, its clients' disks, and the link to them.

    Attributes:
        config: of the run.
        disk: what outlives a client's process.
        monkeypatch: sets the link's clock.
        modality: makes the modality of one party; by default that of text.
        pool: the examples; by default those of the task.
    """

    config: RunConfig
    disk: Path
    monkeypatch: pytest.MonkeyPatch
    modality: Callable[[], Modality] | None = None
    pool: Pool | None = None
    link: MemoryLink = field(init=False)

    def __post_init__(self) -> None:
        self.disk.mkdir(exist_ok=True)
        pool = self.pool or load_pool(self.config.task, self.config.seed)
        parts = split(pool, self.config.task, self.config.seed)
        self.parts, self._test = parts.private, parts.test
        self._keys = {name: Ed25519PrivateKey.generate() for name in self.parts}
        self.roster = {name: key.public_key() for name, key in self._keys.items()}
        self.link = MemoryLink({name: functools.partial(self.answering, name) for name in self.parts})

    def client(self, name: str) -> Client:
        """A client as it is without a network."""
        if self.modality is None:
            task: Modality = TextTask("custom", load_tokenizer(self.config.slm.source), 16, 32)
            slm, start = shared_slm(self.config.slm.source)  # which another test may have trained
        else:
            task = self.modality()
            slm = build_model(self.config, "slm", task, [], self.disk / "none")
            start = read_adapter(slm)
        spent: Remembered[int | str] = Remembered(self.disk / f"{name}-spent.json")
        data = ClientData(task, slm, self.parts[name], self._test, self.own(name), spent, start=start)
        return build_client(self.config, RunIdentity(RUN, self.config.seed), name, data, list(self.parts))

    def answering(self, name: str) -> ClientEndpoint:
        """A client's process: nothing in its memory, and what was opened on its disk."""
        client: Any = self.client(name)
        form = broadcast_form(self.config, client.modality, client.slm, client.examples)
        settings = secured(self.config, self.roster)
        if settings is not None:
            opened: Remembered[list[str]] = Remembered(self.disk / f"{name}-opened.json")
            sent = LastAnswer(self.disk / f"{name}-vector")
            client = secure_client(self.config, client, settings, self._keys[name], opened, sent)
        update = LastAnswer(self.disk / f"{name}-update")
        return ClientEndpoint(name, client, longest_message(adapter_bytes(form)), sent=update)

    def own(self, name: str) -> Path:
        """Where a client keeps its own adapter."""
        return self.disk / name / "adapter"

    def restart_clients(self) -> None:
        """Every client's process ends, and a new one starts."""
        for client in self.link.processes:
            self.link.start(client)

    def answers(self, client: str) -> list[Request | Answer]:
        """All that a client has ever sent."""
        return [decode(data, 10**9) for name, data in self.link.replies if name == client]

    @property
    def theta(self) -> Adapter:
        """The SLM's adapter before the first round."""
        return shared_slm(self.config.slm.source)[1]

    def request(self, round_index: int = 1, **changes: Any) -> TrainRequest:
        """A good request, without a session."""
        return TrainRequest(round_index, **{"adapter": self.theta, "run": RUN, **changes})

    def remote(self, deadlines: Deadlines = DEADLINES) -> Remote:
        """The clients, as a server's new process sees them."""
        return Remote(self.link.transport(self.monkeypatch, deadlines), RUN, self.roster)

    def run(self, out: Path, resume: bool = False, deadlines: Deadlines = DEADLINES) -> list[RoundRecord]:
        """A server's process from its start to the end of the run."""
        inputs = Inputs(self.modality and self.modality(), self.pool, self.remote(deadlines))
        return list(rounds(None if resume else self.config, out, inputs, resume=resume))


def last(out: Path) -> tuple[RoundRecord, Adapter]:
    """The last round that is on disk, and the SLM's adapter."""
    state = run_directory.load_round(out)
    assert state is not None
    return state[0], state[1]["slm"]


def difference(one: Adapter, other: Adapter) -> float:
    """The largest one of any parameter."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def relabelled(data: bytes, version: int) -> bytes:
    """A message as a party of another version of the protocol sends it."""
    return data.replace(f"{PROTOCOL_VERSION}\\n".encode(), f"{version}\\n".encode(), 1)


def garbage(*receivers: str) -> Callable[[bytes], bytes]:
    """What turns the answer of client 1 in phase share into one that these receivers can't open."""

    def changed(reply: bytes) -> bytes:
        answer = decode(reply, len(reply))
        assert isinstance(answer, PhaseAnswer)
        return encode(PhaseAnswer("1", answer.nonce, {**answer.items, **{client: bytes(208) for client in receivers}}))

    return changed


def identical(one: Adapter, other: Adapter) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
