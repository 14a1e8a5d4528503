"""The server: Algorithm 1 of FedCoLLM (arXiv 2411.11707), a round at a time."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fedcollm.config import EvaluationConfig, FederationConfig, ServerConfig, asked_clients
from fedcollm.federation.aggregation.base import Aggregate, Aggregator
from fedcollm.federation.layer_transfer import apply_delta, init_from_slm
from fedcollm.federation.personalization import with_personal
from fedcollm.federation.server_optimizers import OptimizerState, apply_server_optimizer
from fedcollm.messages import Adapter, Answer, Request, RoundRecord, Score, TrainRequest
from fedcollm.metrics import peak_memory_bytes
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.seeding import RunIdentity, derive_seed
from fedcollm.training.distillation import ModelPair, distil
from fedcollm.training.fine_tuning import evaluate


class Transport(Protocol):
    """Carries requests to clients and updates back: one interface for one process and for a network."""

    def clients(self) -> Sequence[str]:
        """Return the ids of the clients that can be asked."""
        ...

    def ask(self, requests: Mapping[str, Request]) -> Iterator[Answer]:
        """Send each client its request; yield their answers as they come."""
        ...


def sample(ids: Sequence[str], fraction: float, seed: int, round_index: int) -> list[str]:
    """Return the clients of a round, in the order of `ids`; at least one, if there are any.

    >>> sample(["a", "b", "c", "d"], 0.5, 0, 1) == sample(["a", "b", "c", "d"], 0.5, 0, 1)
    True
    >>> len(sample(["a", "b", "c", "d"], 0.5, 0, 1))
    2
    """
    count = asked_clients(len(ids), fraction)
    chosen = set(random.Random(derive_seed(seed, "sample", round_index)).sample(range(len(ids)), count))
    return [client for i, client in enumerate(ids) if i in chosen]


@dataclass
class Server:
    """Owner of the LLM, a copy of the SLM and the public set.

    Attributes:
        pair: f with adapter ω (None if there is no distillation), g with adapter θ, and how they read examples.
        public: D_a.
        test: examples for scoring both models.
        transport: the way to the clients.
        aggregator: combines their updates.
        settings: of the work on D_a.
        federation: client sampling and server optimizer.
        evaluation: of scoring.
        identity: of the run, which its clients know.
        slm_layers: for layer transfer: index in the LLM of every layer of the SLM.
        adapter: θ, the global adapter, as it is broadcast next.
        state: of the server optimizer.
        scored: each role's score when it was last scored, with its confusion table.
    """

    pair: ModelPair = field(repr=False)
    public: Sequence[Any] = field(repr=False)
    test: Sequence[Any] = field(repr=False)
    transport: Transport
    aggregator: Aggregator
    settings: ServerConfig = ServerConfig()
    federation: FederationConfig = FederationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    identity: RunIdentity = RunIdentity()
    slm_layers: Sequence[int] = ()
    adapter: Adapter = field(init=False, repr=False)
    state: OptimizerState = field(init=False, repr=False, default_factory=dict)
    scored: dict[str, Score] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.adapter = read_adapter(self.pair.slm)
        if self.pair.llm is not None and self.settings.layer_transfer:
            write_adapter(self.pair.llm, init_from_slm(read_adapter(self.pair.llm), self.adapter, self.slm_layers))

    def run_round(self, round_index: int, score: bool = True, score_clients: bool = True) -> RoundRecord:
        """Run one round of Algorithm 1.

        Args:
            round_index: 1 for the first.
            score: whether models are scored in this round.
            score_clients: whether the clients' tuned SLMs are among them.

        Raises:
            NonFiniteError: a loss became NaN or infinite; `adapter` is then still the last good one.
            RoundFailedError: too few clients gave an update.
        """
        # 1. Sample the round's clients and broadcast θ to them.
        clients = sample(self.transport.clients(), self.federation.fraction, self.identity.seed, round_index)
        request = TrainRequest(round_index, self.adapter, score and score_clients, run=self.identity.run)
        # 2. Each client fine-tunes θ on its private data, 3. and what they send is aggregated, securely where asked.
        tuned = self.aggregator.aggregate(self.transport.ask, request, clients) if clients else None
        # 4. The server optimizer takes the mean up: θ, and with layer transfer ω too.
        state = self._apply_server_optimizer(tuned.adapter) if tuned else self.state
        # 5. LLM and SLM teach each other on the public set.
        start = time.perf_counter()
        losses = self._distil(round_index) if self.pair.llm is not None else {}
        distilled, adapter = time.perf_counter(), read_adapter(self.pair.slm)
        # 6. Score both models, and commit the round.
        scores = self.scores() if score else {}
        self.adapter, self.state = adapter, state
        seconds = {"distillation": distilled - start, "evaluation": time.perf_counter() - distilled}
        return self._record(RoundRecord(round_index, scores, losses, seconds=seconds), tuned)

    def _apply_server_optimizer(self, mean: Adapter) -> OptimizerState:
        """Write the next θ into the SLM and, where it was cut from the LLM, its change into that; return the state."""
        adapter, state = apply_server_optimizer(self.federation.server_optimizer, self.adapter, mean, self.state)
        write_adapter(self.pair.slm, adapter)
        llm, share = self.pair.llm, self.settings.layer_transfer
        if llm is not None and share:
            write_adapter(llm, apply_delta(read_adapter(llm), self.adapter, adapter, self.slm_layers, share))
        return state

    def _distil(self, round_index: int) -> dict[str, float]:
        return distil(self.pair, self.public, self.settings, self.identity.derive("server", round_index), round_index)

    def _record(self, record: RoundRecord, tuned: Aggregate | None) -> RoundRecord:
        """Return a round's record with what the clients did in it."""
        record = replace(record, peak_memory_bytes=peak_memory_bytes())
        if tuned is None:
            return replace(record, seconds={"clients": 0.0, **record.seconds})
        seconds = dict(tuned.seconds)
        seconds["distillation"] = record.seconds["distillation"]
        seconds["evaluation"] = seconds.get("evaluation", 0.0) + record.seconds["evaluation"]
        return replace(
            record,
            scores=record.scores | ({} if tuned.clients_score is None else {"clients": tuned.clients_score}),
            losses=({} if tuned.loss is None else {"client": tuned.loss}) | dict(record.losses),
            seconds=seconds,
            participants=tuned.participants,
            lost=tuned.lost,
            bytes_up=tuned.bytes_up,
            bytes_down=tuned.bytes_down,
        )

    def personalize(self, record: RoundRecord) -> tuple[RoundRecord, dict[str, float]]:
        """After the last round, let every client tune θ once more and keep the result; see `with_personal`."""
        request = TrainRequest(record.round + 1, self.adapter, run=self.identity.run, keep=True)
        clients = self.transport.clients()
        told = with_personal(record, request, clients, self.transport.ask(dict.fromkeys(clients, request)))
        write_adapter(self.pair.slm, self.adapter)
        return told

    def scores(self) -> dict[str, float]:
        """Score the global SLM and the LLM on the test examples; return the main metric by role."""
        for role in self.pair.models():
            self.scored[role] = self.score(role)
        return {role: score.value for role, score in self.scored.items()}

    def score(self, role: str) -> Score:
        """Score one role's model on the test examples."""
        model, modality = self.pair.models()[role], self.pair.modality.of(role)
        return evaluate(modality, model, self.test, self.evaluation.batch_size, f"scoring {role}")

    def adapters(self) -> dict[str, Adapter]:
        """Return all that the next round depends on: θ, ω where there is an LLM, the server optimizer's state."""
        llm = {} if self.pair.llm is None else {"llm": read_adapter(self.pair.llm)}
        return {"slm": self.adapter} | llm | self.state

    def restore(self, adapters: Mapping[str, Adapter]) -> None:
        """Go on from the adapters of an earlier round."""
        models = self.pair.models()
        for role, model in models.items():
            write_adapter(model, adapters[role])
        self.adapter = adapters["slm"]
        self.state = {role: adapter for role, adapter in adapters.items() if role not in models}
