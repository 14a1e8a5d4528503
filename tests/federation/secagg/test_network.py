"""Rounds of secure aggregation over a network that drops, repeats, delays and reorders, while everybody is killed.

A model-based test: whatever happens, no sum is wrong, no client helps to open a round or a θ for two lists of
survivors or sends two updates in a round, though its training gives another one each time, and once nothing goes wrong
any more, the run goes on. A longer run, of some 5,000 steps:

    FEDCOLLM_MACHINES=500 python -m pytest tests/federation/secagg/test_network.py
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from fedcollm.deploy.remembered import Remembered
from fedcollm.errors import RoundFailedError, SpoiledRoundError
from fedcollm.federation.answered import LastAnswer
from fedcollm.federation.secagg.aggregator import SecureAggregator
from fedcollm.federation.secagg.client import SecureClient
from fedcollm.federation.secagg.fixed_point import FixedPoint
from fedcollm.federation.secagg.opening import ATTEMPTS
from fedcollm.federation.secagg.settings import SecureSettings
from fedcollm.messages import Answer, ClientUpdate, Failure, PhaseAnswer, PhaseRequest, Request, TrainRequest
from fedcollm.transports.endpoint import ClientEndpoint
from fedcollm.transports.wire import decode, encode

IDS = ("a", "b", "c", "d")
KEYS = {name: Ed25519PrivateKey.generate() for name in IDS}
SETTINGS = SecureSettings(FixedPoint(4, 8, 1.0), {name: key.public_key() for name, key in KEYS.items()})
PHASES = ("advertise", "share", "mask", "confirm", "unmask")
FAULTS = (
    "dropped",
    "answer dropped",
    "repeated",
    "late",
    "last",
    "client killed",
    "client killed after",
    "wrong share",
)
PLACES = st.tuples(st.sampled_from(PHASES), st.sampled_from(IDS))


class ServerKilledError(Exception):
    """The server's process ends."""


def change(name: str, round_index: int, training: int) -> torch.Tensor:
    """What a client adds to θ: multiples of 1/64, which the fixed point holds exactly."""
    return torch.tensor([IDS.index(name) + 1.0, round_index % 7, training % 50 - 25.0]) / 64


@dataclass
class Party:
    """A client's process, and its disk."""

    name: str
    disk: Path
    endpoint: ClientEndpoint = field(init=False)
    trainings: int = 0
    first: dict[tuple[int, bytes], torch.Tensor] = field(default_factory=dict)
    """round and θ, to what the client added when it trained for the first time"""

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        spent: Remembered[str] = Remembered(self.disk / f"{self.name}-spent.json")
        stub: Any = SimpleNamespace(id=self.name, run="run", train=self._train, spent=spent)
        opened: Remembered[list[str]] = Remembered(self.disk / f"{self.name}-opened.json")
        sent = LastAnswer(self.disk / f"{self.name}-vector")
        client = SecureClient(stub, SETTINGS, 4, KEYS[self.name], opened, sent)
        self.endpoint = ClientEndpoint(self.name, client, 10**6)

    def _train(self, request: TrainRequest) -> ClientUpdate:
        self.trainings += 1
        added = change(self.name, request.round_index, self.trainings)
        self.first.setdefault((request.round_index, request.adapter["w"].numpy().tobytes()), added)
        tuned = {"w": request.adapter["w"] + added}
        return ClientUpdate(self.name, request.round_index, tuned, IDS.index(self.name) + 1, 0.5)


class Network:
    """Carries bytes, and does to each message what it is told to."""

    def __init__(self, parties: Mapping[str, Party], faults: Mapping[tuple[str, str], str], killed: str | None):
        self.parties, self.faults, self.killed = parties, dict(faults), killed
        self.late: list[Answer] = []

    def ask(self, requests: Mapping[str, Request]) -> Iterator[Answer]:
        answers, last = self.late, list[Answer]()
        self.late = []
        for client, request in requests.items():
            phase = request.phase if isinstance(request, PhaseRequest) else "advertise"
            if phase == self.killed:
                raise ServerKilledError
            fault = self.faults.get((phase, client), "")
            found = self._deliver(self.parties[client], encode(request), fault)
            (last if fault == "last" else self.late if fault == "late" else answers).extend(found)
        yield from [*answers, *last]

    def _deliver(self, party: Party, data: bytes, fault: str) -> list[Answer]:
        if fault == "dropped":
            return [Failure(party.name, "no answer")]
        if fault == "client killed":
            party.start()
        reply = party.endpoint(data)
        if fault == "repeated":
            assert party.endpoint(data) == reply
        if fault == "client killed after":
            party.start()
        answer: Any = decode(reply, 10**6)
        if isinstance(answer, PhaseAnswer) and fault == "wrong share" and "a" in answer.items:
            answer = PhaseAnswer(answer.client, answer.nonce, {**answer.items, "a": bytes(len(answer.items["a"]))})
        gone = fault in ("answer dropped", "client killed after")
        return [Failure(party.name, "no answer")] if gone else [answer] * (2 if fault == "repeated" else 1)


class Rounds(RuleBasedStateMachine):
    """A run of rounds; the server's and the clients' disks outlive their processes."""

    def __init__(self):
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        self.disk = Path(self.place.name)
        self.parties = {name: Party(name, self.disk) for name in IDS}
        self.round, self.theta = 1, torch.zeros(3)
        self.helped: dict[tuple[str, str], list[str]] = {}

    def teardown(self) -> None:
        self.place.cleanup()

    @rule(
        faults=st.dictionaries(PLACES, st.sampled_from(FAULTS), max_size=5),
        killed=st.none() | st.sampled_from((*PHASES, "before it saves")),
    )
    def attempt_with_faults(self, faults, killed):
        self.attempt(faults, killed)

    @rule(name=st.sampled_from(IDS))
    def kill_client(self, name):
        self.parties[name].start()

    @rule()
    def nothing_goes_wrong_any_more(self):
        before = self.round
        for _ in range(ATTEMPTS + 1):
            self.attempt({}, None)
            if self.round > before:
                return
        raise AssertionError(f"round {before} is never over")

    def attempt(self, faults: Mapping[tuple[str, str], str], killed: str | None) -> None:
        """One session of the round, by a server that has just started."""
        network, aggregator = Network(self.parties, faults, killed), SecureAggregator(SETTINGS, self.disk / "opening")
        request = TrainRequest(self.round, {"w": self.theta}, run="run")
        try:
            aggregate = aggregator.aggregate(network.ask, request, IDS)
        except SpoiledRoundError:
            self.advance(torch.nextafter(self.theta, torch.full((3,), torch.inf)))
        except (RoundFailedError, ServerKilledError):
            pass
        else:
            who = aggregate.participants
            assert len(who) >= 3
            weights = {name: IDS.index(name) + 1 for name in who}
            key = self.round, self.theta.numpy().tobytes()
            mean = sum(self.parties[name].first[key].double() * weights[name] for name in who) / sum(weights.values())
            assert torch.allclose(aggregate.adapter["w"].double(), self.theta.double() + mean, atol=1e-6)
            assert aggregate.examples == sum(weights.values())
            if killed != "before it saves":
                self.advance(aggregate.adapter["w"])
        finally:
            self.check_openings()

    def advance(self, theta: torch.Tensor) -> None:
        self.round, self.theta = self.round + 1, theta

    def check_openings(self) -> None:
        """No client has changed its mind about for whom a round or a θ was opened."""
        for name in IDS:
            for what, survivors in Remembered[list[str]](self.disk / f"{name}-opened.json").items():
                assert self.helped.setdefault((name, what), survivors) == survivors
        by_round: dict[str, set[tuple[str, ...]]] = {}
        for (_, what), survivors in self.helped.items():
            by_round.setdefault(what, set()).add(tuple(survivors))
        assert all(len(lists) == 1 for lists in by_round.values()), by_round


Rounds.TestCase.settings = settings(
    max_examples=int(os.environ.get("FEDCOLLM_MACHINES", "6")), stateful_step_count=10, deadline=None
)
TestRounds = Rounds.TestCase
