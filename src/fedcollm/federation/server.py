"""The server: Algorithm 1 of FedCoLLM (arXiv 2411.11707), a round at a time."""

import dataclasses
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import peft

from fedcollm.config import asked_clients
from fedcollm.errors import RoundFailedError
from fedcollm.federation.aggregation.lora import ProductMean
from fedcollm.federation.aggregation.mean import ComponentMean, Mean
from fedcollm.federation.aggregation.validation import (
    Aggregate,
    aggregate,
    in_order,
    validate_updates,
    with_client_failures,
)
from fedcollm.federation.layer_transfer import apply_delta, init_from_slm
from fedcollm.federation.personalization import with_personal
from fedcollm.federation.secagg.aggregator import SecureSettings, aggregate_securely, simulate_quantization
from fedcollm.federation.secagg.fixed_point import FixedPoint
from fedcollm.federation.server_optimizers import PLAIN, OptimizerState, ServerOptimizer
from fedcollm.federation.upload_format import WHOLE, UploadFormat
from fedcollm.messages import Adapter, Answer, Request, RoundRecord, Score, TrainRequest, adapter_bytes
from fedcollm.metrics import peak_memory_bytes
from fedcollm.modalities.base import Task
from fedcollm.modalities.text.cross_tokenizer import TokenizerBridge
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.seeding import derive_seed
from fedcollm.training.distillation import Divergence, distil_mutually, ramp
from fedcollm.training.fine_tuning import evaluate


class Transport(Protocol):
    """Carries requests to clients and updates back: one interface for one process and for a network."""

    def clients(self) -> Sequence[str]:
        """Ids of the clients that can be asked."""
        ...

    def ask(self, requests: Mapping[str, Request]) -> Iterator[Answer]:
        """Send each client its request; yield their answers as they come."""
        ...


def sample(ids: Sequence[str], fraction: float, seed: int, round_index: int) -> list[str]:
    """The clients of a round, in the order of `ids`; at least one, if there are any.

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
        task: the modality, as the SLM and the clients have it.
        slm: g with adapter θ.
        llm: f with adapter ω; None if there is no distillation.
        transport: the way to the clients.
        public: D_a.
        test: examples for scoring both roles.
        fraction: share of the clients drawn in each round.
        uniform: aggregate with weight 1/K instead of n_k / n.
        product: aggregate the products of LoRA's factors, not the factors.
        secure: aggregate securely; None: see each update.
        simulated_encoding: without `secure`, round as secure aggregation with this encoding does.
        minimum: a round with fewer updates fails.
        private: clients send adapters alone, without numbers of examples, losses, scores and seconds.
        max_update_norm: bound of the L2 norm of a client's θ_k − θ, where it is seen; larger ones are refused.
        uploads: client id to the form that its adapter comes in; those that are not named send all as it is.
        epochs: passes over D_a a round.
        batch_size: examples a distillation step.
        learning_rate: of both models' AdamW.
        max_grad_norm: longest gradient of a step, of each model by itself; None: any.
        weight: λ of the SLM's loss.
        llm_weight: λ of the LLM's loss; None: same.
        temperature: τ.
        kind: divergence.
        teach_where_better: each role is taught only where the other one knows better.
        ramp: rounds over which λ grows to its full weight; 0: none.
        step: what is done with the clients' mean.
        layer_transfer: share of the clients' mean change that is moved into the LLM's own layers.
        kept: for `layer_transfer`: index in the LLM of every layer of the SLM.
        evaluation_batch_size: examples a forward pass when scoring.
        seed: the run's seed.
        run: identity of the run, which its clients know.
        adapter: θ, the global adapter, as it is broadcast next.
        memory: of `step`.
        bridge: to the LLM's own task, where it has another tokenizer.
        scored: each role's score when it was last scored, with its confusion table.
    """

    task: Task
    slm: peft.PeftModel = field(repr=False)
    llm: peft.PeftModel | None = field(repr=False)
    transport: Transport
    public: Sequence[Any] = field(repr=False)
    test: Sequence[Any] = field(repr=False)
    fraction: float = 1.0
    uniform: bool = False
    product: bool = False
    secure: SecureSettings | None = None
    simulated_encoding: FixedPoint | None = None
    minimum: int = 1
    private: bool = False
    max_update_norm: float = 1e3
    uploads: Mapping[str, UploadFormat] = field(default_factory=dict)
    epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 1e-3
    max_grad_norm: float | None = None
    weight: float = 1.0
    llm_weight: float | None = None
    temperature: float = 1.0
    kind: Divergence = "forward_kl"
    teach_where_better: bool = False
    ramp: int = 0
    step: ServerOptimizer = PLAIN
    layer_transfer: float = 0.0
    kept: Sequence[int] = ()
    evaluation_batch_size: int = 32
    seed: int = 0
    run: str = ""
    bridge: TokenizerBridge | None = field(default=None, repr=False)
    adapter: Adapter = field(init=False, repr=False)
    memory: OptimizerState = field(init=False, repr=False, default_factory=dict)
    scored: dict[str, Score] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.adapter = read_adapter(self.slm)
        if self.llm and self.layer_transfer:
            write_adapter(self.llm, init_from_slm(read_adapter(self.llm), self.adapter, self.kept))

    def adapters(self) -> dict[str, Adapter]:
        """θ, where there is an LLM ω, and the memory of `step`: all that the next round depends on."""
        return {"slm": self.adapter} | ({"llm": read_adapter(self.llm)} if self.llm else {}) | self.memory

    def restore(self, adapters: Mapping[str, Adapter]) -> None:
        """Go on from the adapters of an earlier round."""
        for role, model in self.models().items():
            write_adapter(model, adapters[role])
        self.adapter = adapters["slm"]
        self.memory = {role: adapter for role, adapter in adapters.items() if role not in self.models()}

    def run_round(self, round_index: int, score: bool = True, score_clients: bool = True) -> RoundRecord:
        """Broadcast, local fine-tuning, aggregation, mutual distillation, scoring.

        Args:
            round_index: 1 for the first.
            score: whether models are scored in this round.
            score_clients: whether the clients' tuned SLMs are among them.

        Raises:
            NonFiniteError: a loss became NaN or infinite; `adapter` is then still the last good one.
        """
        ids = sample(self.transport.clients(), self.fraction, self.seed, round_index)
        request = TrainRequest(round_index, self.adapter, score and score_clients, run=self.run)
        tuned = self._aggregate(request, ids) if ids else None
        memory = self._apply_server_optimizer(tuned.adapter) if tuned else self.memory
        start = time.perf_counter()
        losses = self._distil(self.llm, round_index) if self.llm else {}
        seconds = dict(tuned.seconds) if tuned else {"clients": 0.0}
        seconds["distillation"] = time.perf_counter() - start
        adapter = read_adapter(self.slm)
        scores = self.scores() if score else {}
        evaluation = time.perf_counter() - start - seconds["distillation"]
        seconds["evaluation"] = seconds.get("evaluation", 0.0) + evaluation
        self.adapter, self.memory = adapter, memory
        if tuned:
            losses = ({"client": tuned.loss} if tuned.loss is not None else {}) | losses
            scores |= {"clients": tuned.clients_score} if tuned.clients_score is not None else {}
        record = RoundRecord(round_index, scores, losses, seconds=seconds, peak_memory_bytes=peak_memory_bytes())
        if tuned is None:
            return record
        return dataclasses.replace(
            record,
            participants=tuned.participants,
            lost=tuned.lost,
            bytes_up=tuned.bytes_up,
            bytes_down=tuned.bytes_down,
        )

    def _apply_server_optimizer(self, mean: Adapter) -> OptimizerState:
        """Write the clients' mean into the SLM and, where it was cut from the LLM, into that; returns the memory."""
        adapter, memory = self.step(self.adapter, mean, self.memory)
        write_adapter(self.slm, adapter)
        if self.llm and self.layer_transfer:
            write_adapter(
                self.llm, apply_delta(read_adapter(self.llm), self.adapter, adapter, self.kept, self.layer_transfer)
            )
        return memory

    def personalize(self, record: RoundRecord) -> tuple[RoundRecord, dict[str, float]]:
        """After the last round: let every client tune θ once more and keep the result; see `with_personal`."""
        request, ids = TrainRequest(record.round + 1, self.adapter, run=self.run, keep=True), self.transport.clients()
        told = with_personal(record, request, ids, self.transport.ask(dict.fromkeys(ids, request)))
        write_adapter(self.slm, self.adapter)
        return told

    def scores(self) -> dict[str, float]:
        """Main metric of the global SLM and the LLM on the test examples."""
        for role in self.models():
            self.scored[role] = self.score(role)
        return {role: score.value for role, score in self.scored.items()}

    def score(self, role: str) -> Score:
        """Of one role on the test examples."""
        model, where = self.models()[role], f"scoring {role}"
        return evaluate(self.task_of(role), model, self.test, self.evaluation_batch_size, where)

    def task_of(self, role: str) -> Task:
        """The task in a role's own tokens."""
        return self.bridge.llm if self.bridge and role == "llm" else self.task

    def models(self) -> dict[str, peft.PeftModel]:
        """Role to model, for the roles that there are."""
        return {"slm": self.slm} | ({"llm": self.llm} if self.llm else {})

    def _aggregate(self, request: TrainRequest, ids: Sequence[str]) -> Aggregate:
        """The mean of these clients' updates.

        Raises:
            RoundFailedError: no update, or too few of them for secure aggregation.
        """
        if self.secure:
            return aggregate_securely(self.transport.ask, request, ids, self.secure)
        lost: dict[str, str] = {}
        answers = self.transport.ask(dict.fromkeys(ids, request))
        updates = validate_updates(answers, request, ids, self.max_update_norm, lost, self.private, self.uploads)
        with with_client_failures(lost):
            ordered = in_order(updates, ids)
            if self.simulated_encoding:
                mean = simulate_quantization(ordered, request, self.simulated_encoding, self.uniform)
            else:
                mean = aggregate(ordered, self.uniform, self._mean(request.adapter))
            if len(mean.participants) < self.minimum:
                raise RoundFailedError(
                    f"round {request.round_index}: {len(mean.participants)} of {len(ids)} clients gave an update, and "
                    f"{self.minimum} are needed. The last good state is kept: bring the clients back, and resume."
                )
        down = adapter_bytes(request.adapter)
        return dataclasses.replace(mean, lost=lost, bytes_up=self.bytes_up(ids), bytes_down=down)

    def _mean(self, theta: Adapter) -> Mean | None:
        """The kind of mean that is asked for, or that the clients' uploads need; None: of every value."""
        if self.product:
            return ProductMean(theta)
        ranks = any(upload.rank is not None for upload in self.uploads.values())
        return ComponentMean(theta) if ranks else None

    def bytes_up(self, ids: Sequence[str]) -> int:
        """Bytes that a plain update of one of these clients has, on average."""
        forms = (self.uploads.get(client, WHOLE).expected(self.adapter) for client in ids)
        return sum(map(adapter_bytes, forms)) // len(ids)

    def _distil(self, llm: peft.PeftModel, round_index: int) -> dict[str, float]:
        share = ramp(round_index, self.ramp)
        return distil_mutually(
            self.task,
            self.slm,
            llm,
            self.public,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=derive_seed(self.seed, "server", round_index),
            weight=self.weight * share,
            llm_weight=None if self.llm_weight is None else self.llm_weight * share,
            temperature=self.temperature,
            kind=self.kind,
            teach_where_better=self.teach_where_better,
            max_grad_norm=self.max_grad_norm,
            bridge=self.bridge,
        )
