"""The server: it runs the rounds of Algorithm 1 of FedCoLLM (arXiv 2411.11707)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedcollm.config import (
    AskedStatistics,
    EvaluationConfig,
    FederationConfig,
    ServerConfig,
)
from fedcollm.data.audit.profiles import Profile
from fedcollm.errors import SpoiledRoundError
from fedcollm.federation import profile, statistics
from fedcollm.federation.aggregation.base import Aggregate, Aggregator
from fedcollm.federation.cohort import Simulation, Transport, another, failures_of, of_round, sample, without
from fedcollm.federation.download_format import EXACT, DownloadFormat, applied, download_format, sending
from fedcollm.federation.fresh_slm import distil_fresh
from fedcollm.federation.gate import Gate, build_gate
from fedcollm.federation.layer_transfer import apply_delta, init_from_slm
from fedcollm.federation.personalization import lost_clients, with_personal
from fedcollm.federation.pseudo_labels import ACCURACY, build_teacher, teach, verdict, with_pseudo_labels
from fedcollm.federation.server_optimizers import OptimizerState, apply_server_optimizer
from fedcollm.messages import Adapter, RoundRecord, Score, TrainRequest, adapter_bytes, readable
from fedcollm.metrics import peak_memory_bytes
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.progress import say
from fedcollm.seeding import RunIdentity
from fedcollm.training.distillation import ModelPair, distil
from fedcollm.training.fine_tuning import evaluate, predict

#: Names of the teacher, and of the clients that are left out, among the adapters of a checkpoint.
_TEACHER, _LEFT_OUT = "teacher", "left_out"


@dataclass
class Server:
    """The owner of the LLM, a copy of the SLM, and the public data.

    Attributes:
        pair: the models, f with adapter ω (None if there is no distillation) and g with adapter θ, and their modality.
        public: D_a.
        test: examples on which both models are scored.
        transport: carries requests to the clients.
        aggregator: combines the clients' updates.
        settings: settings of the distillation on D_a, and of layer transfer.
        federation: settings of client sampling and of the server optimizer.
        evaluation: settings of scoring.
        identity: the name of the run, which its clients know, and its seed.
        slm_layers: the index in the LLM of every layer of the SLM, for layer transfer.
        adapter: θ, the global adapter, which the next round broadcasts.
        download: the form in which it is broadcast.
        state: the state of the server optimizer.
        teacher: what labels the unlabelled part of D_a; empty if nothing does.
        scored: the latest score of each role.
        left_out: the clients that are not asked any more, with the round, [1], that each of them has spoiled.
        profile: the profile of the clients' data, once they have sent it.
        gate: what weighs the distillation, whose labelled examples `public` then has without their labels; or None.
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
    download: DownloadFormat = field(init=False, repr=False, default=EXACT)
    state: OptimizerState = field(init=False, repr=False, default_factory=dict[str, Adapter])
    teacher: Adapter = field(init=False, repr=False, default_factory=dict[str, Any])
    scored: dict[str, Score] = field(init=False, repr=False, default_factory=dict[str, Score])
    left_out: Adapter = field(init=False, repr=False, default_factory=dict[str, Any])
    profile: Profile | None = field(init=False, repr=False, default=None)
    gate: Gate | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.adapter = self._initial = read_adapter(self.pair.slm)
        if self.pair.llm is not None:
            self.public, self.gate = build_gate(self.settings.distillation.gate, self.public, self.identity)
        self.download = download_format(self.federation.download, self.adapter)
        if self.pair.llm is not None and self.settings.layer_transfer:
            write_adapter(self.pair.llm, init_from_slm(read_adapter(self.pair.llm), self.adapter, self.slm_layers))

    def ask_statistics(self, asked: AskedStatistics) -> Aggregate | None:
        """Return the mean of all clients' statistics, whatever fraction a round samples; None if there are no clients.

        If a profile is asked for, it is in `profile` afterward.

        Raises:
            RoundFailedError: too few clients sent statistics, or their mean can't be that of honest clients.
        """
        clients = self.transport.clients()
        if not clients:
            return None
        modality = self.pair.modality.of("slm")
        blank = statistics.blank(modality, self.test, asked, self.pair.slm)
        request = TrainRequest(statistics.ROUND, blank, evaluate=False, run=self.identity.run)
        aggregate = self.aggregator.aggregate(without(self.transport.ask, self.left_out), request, clients)
        self._leave_out(aggregate, statistics.ROUND)
        failures_of(self.transport, aggregate.participants, "statistics")
        if self.federation.privacy is None:
            statistics.check_mean(aggregate.adapter)
        if asked.buckets:
            count, examples = len(aggregate.participants), aggregate.examples or 0
            self.profile = profile.pooled(aggregate.adapter, count, examples, modality, self.test[0])
        return aggregate

    def prepare(self, asked: AskedStatistics) -> RoundRecord:
        """Before the first round, ask for statistics, if there is a use for them; return record 0.

        They give the teacher of `pseudo_labels`, and the profile of the clients' data. The record's notes warn of
        secure aggregation without differential privacy.

        Args:
            asked: the statistics that the clients agreed to send.

        Raises:
            RoundFailedError: as in `ask_statistics`.
        """
        warning = self.federation.warning if self.transport.clients() else None
        if warning is None:
            return self._prepare(asked)
        say(f"warning: {warning}")
        record = self._prepare(asked)
        return replace(record, notes=(warning, *record.notes))

    def _prepare(self, asked: AskedStatistics) -> RoundRecord:
        labels, start = self.settings.pseudo_labels, time.perf_counter()
        teaches = labels is not None and labels.asks_clients and self.pair.llm is not None
        asked = replace(asked, ridge=labels if teaches else None)
        aggregate = note = None
        try:
            aggregate = self.ask_statistics(asked) if asked else None
            note = self._build_teacher(aggregate) if aggregate and teaches else None
        except SpoiledRoundError as error:
            lost = "pseudo-labels: the statistics that they need" if teaches else "profile: the statistics for it"
            note = readable(f"{lost} were spoiled, so there are none. {error}")
            record = self._spoiled(statistics.ROUND, error, note)
            return replace(record, seconds={"clients": time.perf_counter() - start})
        if aggregate is None:
            return RoundRecord(0)
        up, down, who = aggregate.bytes_up, aggregate.bytes_down, aggregate.participants
        seconds, notes = {"clients": time.perf_counter() - start}, () if note is None else (note,)
        return RoundRecord(
            0, participants=who, lost=aggregate.lost, bytes_up=up, bytes_down=down, seconds=seconds, notes=notes
        )

    def _build_teacher(self, aggregate: Aggregate) -> str:
        """Solve for the teacher, which is used if it is better than the models, and return what comes of it.

        Raises:
            SpoiledRoundError: a client is faulty.
        """
        settings = self.settings.pseudo_labels
        assert settings is not None
        labelled = [example for example in self.public if example.label is not None]
        clients = aggregate.adapter, aggregate.examples or 1
        teacher = build_teacher(self.pair.modality.of("slm"), self.pair.slm, labelled, clients, settings)
        compared = self.pair.models() if labelled and not settings.always else ()
        best = max((self.score(role, labelled).value for role in compared), default=None)
        used, note = verdict(float(teacher[ACCURACY]), best)
        if not labelled:
            note = "pseudo-labels: without labelled examples in D_a, nothing tells how good the regression is: used"
        self.teacher = teacher if used else {}
        say(note)
        return note

    def _spoiled(self, round_index: int, error: SpoiledRoundError, note: str) -> RoundRecord:
        """Leave out who has spoiled a round, and return its record, with who was lost and the note that is said."""
        self.left_out |= {client: torch.tensor([round_index]) for client in error.culprits}
        say(note)
        write_adapter(self.pair.slm, self.adapter)  # in a simulation, it is the clients' model too
        lost = {client: readable(reason) for client, reason in error.lost.items()}
        return RoundRecord(round_index, lost=lost, notes=(note,))

    def run_round(self, round_index: int, score: bool = True, score_clients: bool = True) -> RoundRecord:
        """Run one round of Algorithm 1.

        Args:
            round_index: index of the round, 1 for the first one.
            score: whether to score models after this round.
            score_clients: whether to score the clients' tuned SLMs too.

        Returns:
            The record of the round.

        Raises:
            NonFiniteError: a loss became NaN or infinite. `adapter` is still that of the previous round.
            RoundFailedError: too few clients sent a valid update. `adapter` is still that of the previous round.
            Exception: all clients of a simulation failed on their data; it is that of the first one.
        """
        # 1. Sample the clients of the round, and broadcast θ to them.
        clients = sample(self.transport.clients(), self.federation.fraction, self.identity.seed, round_index)
        sent = self.download.packed(self.adapter)
        theta = self.download.opened(sent)  # as the clients will have it
        request = TrainRequest(round_index, theta, score and score_clients, run=self.identity.run)
        # 2. Each client k fine-tunes θ on its private data D_k, and the aggregator averages the results.
        aggregate, lost, notes = self._aggregate(request, clients, sent)
        # 3. The server optimizer applies the average to θ, and layer transfer carries the change of θ over to ω.
        mean = applied(self.adapter, theta, aggregate.adapter) if aggregate else self.adapter
        state = self._apply_server_optimizer(mean) if aggregate else self.state
        # 4. Mutual distillation on the public data D_a tunes θ and ω.
        start = time.perf_counter()
        losses, said = self._distil(round_index)
        said += self._distil_fresh(round_index)
        distilled, adapter = time.perf_counter(), read_adapter(self.pair.slm)
        if clients and (aggregate is None or self.federation.secure_aggregation.enabled):
            adapter = another(adapter, theta, lambda new: self.download.opened(self.download.packed(new)))
            write_adapter(self.pair.slm, adapter)
        # 5. Score both models, and commit the round: the next one broadcasts the new θ.
        scores = self.scores() if score else {}
        self.adapter, self.state = adapter, state
        seconds = {"distillation": distilled - start, "evaluation": time.perf_counter() - distilled}
        record = RoundRecord(round_index, scores, losses, seconds=seconds, lost=lost, notes=(*notes, *said))
        record = replace(record, peak_memory_bytes=peak_memory_bytes())
        return aggregate.added_to(record) if aggregate else replace(record, seconds={"clients": 0.0, **seconds})

    def _aggregate(
        self, request: TrainRequest, clients: Sequence[str], sent: Adapter
    ) -> tuple[Aggregate | None, Mapping[str, str], tuple[str, ...]]:
        """Return what comes of the clients' updates, who was lost, and notes for the record.

        Nothing comes of a round that is spoiled; who spoiled it is left out of the rounds to come.

        Args:
            request: the request, with θ as the clients will have it.
            clients: ids of the clients to ask.
            sent: the form in which θ travels.

        Raises:
            Exception: as in `run_round`.
        """
        if not clients:
            return None, {}, ()
        try:
            ask = sending(without(self.transport.ask, self.left_out), sent)
            aggregate = self.aggregator.aggregate(ask, request, clients)
        except SpoiledRoundError as error:
            record = self._spoiled(request.round_index, error, readable(str(error)))
            return None, record.lost, record.notes
        notes = self._leave_out(aggregate, request.round_index)
        notes += failures_of(self.transport, aggregate.participants, f"round {request.round_index}")
        saved = adapter_bytes(request.adapter) - adapter_bytes(sent)
        return replace(aggregate, bytes_down=aggregate.bytes_down - saved), aggregate.lost, notes

    def _leave_out(self, aggregate: Aggregate, round_index: int) -> tuple[str, ...]:
        """Ask clients that have proven to be dishonest no more. Return, and say, a sentence about each, and notes."""
        self.left_out |= {client: torch.tensor([round_index]) for client in aggregate.culprits}
        notes = tuple(
            readable(f"client {client} is left out from now on: {aggregate.lost[client]}")
            for client in aggregate.culprits
        )
        notes += aggregate.notes
        for note in notes:
            say(note)
        return notes

    def _apply_server_optimizer(self, mean: Adapter) -> OptimizerState:
        """Write the next θ to the SLM and, for layer transfer, its change to the LLM. Return the optimizer's state."""
        adapter, state = apply_server_optimizer(self.federation.server_optimizer, self.adapter, mean, self.state)
        write_adapter(self.pair.slm, adapter)
        llm, share = self.pair.llm, self.settings.layer_transfer
        if llm is not None and share:
            write_adapter(llm, apply_delta(read_adapter(llm), self.adapter, adapter, self.slm_layers, share))
        return state

    def _distil(self, round_index: int) -> tuple[dict[str, float], tuple[str, ...]]:
        """Distill on D_a, and return the mean losses and what there is to say; without an LLM, do nothing."""
        if self.pair.llm is None:
            return {}, ()
        public = of_round(self.public, self.settings.unlabelled_per_round, self.identity, round_index)
        public = self._with_pseudo_labels(public, round_index)
        seed, size = self.identity.derive("server", round_index), self.evaluation.batch_size
        trust, said = self.gate.trust(self.pair, public, size) if self.gate else (None, ())
        return distil(self.pair, public, self.settings, seed, round_index, trust), said

    def _distil_fresh(self, round_index: int) -> tuple[str, ...]:
        """After the last round, distil a fresh SLM from the LLM if the settings say so, and return that it was done."""
        if self.pair.llm is None or not self.settings.fresh_slm_epochs or round_index != self.federation.rounds:
            return ()
        seed = self.identity.derive("fresh SLM", round_index)
        distil_fresh(self.pair, self.public, self._initial, self.settings, seed)
        note = f"the SLM was distilled anew from the LLM, on {len(self.public)} public examples"
        say(note)
        return (note,)

    def _with_pseudo_labels(self, public: Sequence[Any], round_index: int) -> Sequence[Any]:
        """Return D_a with labels by `pseudo_labels.teachers`; as it is if none of them has an opinion in this round."""
        settings, modality, slm = self.settings.pseudo_labels, self.pair.modality, self.pair.slm
        if settings is None or (settings.asks_clients and not self.teacher):
            return public
        unlabelled = [example for example in public if example.label is None]
        opinions: list[list[Tensor]] = []
        if self.teacher:
            opinions.append(teach(modality.of("slm"), slm, unlabelled, self.teacher, settings))
        for role, model in self.pair.models().items() if round_index > 1 else ():
            if role in settings.teachers:
                opinions.append(predict(modality.of(role), model, unlabelled, self.evaluation.batch_size))
        if not opinions:
            return public
        return with_pseudo_labels(public, opinions, settings, self.identity.derive("pseudo-labels", round_index))

    def personalize(self, record: RoundRecord) -> tuple[RoundRecord, dict[str, float]]:
        """After the last round, let every client fine-tune θ once more and keep the result.

        Args:
            record: the record of the last round.

        Returns:
            The completed record, and the score of each client of a simulation, as `with_personal` returns them.
        """
        request = TrainRequest(record.round + 1, self.adapter, run=self.identity.run, keep=True)
        clients = self.transport.clients()
        lost = lost_clients(
            request, clients, without(self.transport.ask, self.left_out)(dict.fromkeys(clients, request))
        )
        write_adapter(self.pair.slm, self.adapter)
        return with_personal(
            record, lost, self.transport.own_scores() if isinstance(self.transport, Simulation) else {}
        )

    def scores(self) -> dict[str, float]:
        """Score the global SLM and the LLM on the test examples, and return the main metric of each role."""
        for role in self.pair.models():
            self.scored[role] = self.score(role)
        return {role: score.value for role, score in self.scored.items()}

    def score(self, role: str, examples: Sequence[Any] | None = None) -> Score:
        """Return the score of one role's model on examples, by default the test examples."""
        model, modality = self.pair.models()[role], self.pair.modality.of(role)
        examples = self.test if examples is None else examples
        return evaluate(modality, model, examples, self.evaluation.batch_size, f"scoring {role}")

    def adapters(self) -> dict[str, Adapter]:
        """Return all that the next round depends on.

        That is θ, ω if there is an LLM, the optimizer's state, the teacher, and who is left out.
        """
        llm = {} if self.pair.llm is None else {"llm": read_adapter(self.pair.llm)}
        more = {_TEACHER: self.teacher, _LEFT_OUT: self.left_out}
        return {"slm": self.adapter} | llm | self.state | {name: tensors for name, tensors in more.items() if tensors}

    def restore(self, adapters: Mapping[str, Adapter]) -> None:
        """Continue from what `adapters` returned after an earlier round."""
        models = self.pair.models()
        for role, model in models.items():
            write_adapter(model, adapters[role])
        self.adapter = adapters["slm"]
        self.teacher = adapters.get(_TEACHER, {})
        self.left_out = dict(adapters.get(_LEFT_OUT, {}))
        self.state = {name: one for name, one in adapters.items() if name not in (*models, _TEACHER, _LEFT_OUT)}
