"""A client: it fine-tunes the global adapter on its private examples.

It keeps no state between rounds except a digest of the statistics that it sent and, under privacy, the number of rounds
that it has trained for.
"""

import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fedcollm.config import ClientConfig, EvaluationConfig, StatisticsConfig
from fedcollm.errors import RefusalError
from fedcollm.federation import statistics
from fedcollm.federation.upload_format import WHOLE, UploadFormat, truncated
from fedcollm.messages import Adapter, ClientUpdate, Request, Score, TrainRequest, payload_digest
from fedcollm.modalities.base import Modality
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.privacy.accounting import ClientPrivacy, ExamplePrivacy, Privacy
from fedcollm.seeding import RunIdentity
from fedcollm.training.dp_sgd import fit_privately
from fedcollm.training.fine_tuning import evaluate, fit


@dataclass(frozen=True)
class Agreement:
    """What a client agrees to before it takes part in a run.

    Attributes:
        identity: the only run that the client takes part in, and the seed of that run.
        rounds: the largest number of rounds that the client trains for under privacy; None sets no limit.
        privacy: what an update must hide; None if nothing. An update under privacy is the adapter alone, without any
            number of the client.
        upload: the form in which the client sends its adapter. If it has a lower rank, the client trains only those
            components.
        statistics: the statistics of its examples that the client sends if it is asked for them; None if it sends none.
        trains: whether the client trains at all.
    """

    identity: RunIdentity = RunIdentity()
    rounds: int | None = None
    privacy: Privacy | None = None
    upload: UploadFormat = WHOLE
    statistics: StatisticsConfig | None = None
    trains: bool = True


@dataclass(frozen=True)
class Client:
    """An owner of private data.

    Attributes:
        id: the client's name in the federation.
        modality: makes batches, outputs, losses and scores from its examples.
        slm: base SLM with an adapter, whose values every request overwrites.
        examples: D_k; they never leave this object.
        test: examples on which the tuned SLM is scored; it is not scored if there are none.
        settings: settings of local fine-tuning.
        evaluation: settings of scoring.
        agreement: what the client agreed to with the federation.
        spent: what can't be given twice. Under privacy, `rounds` maps to the number of rounds that the client has
            trained for. `statistics/RUN` maps to a digest of the statistics that it has sent in a run. Whoever builds
            the client keeps it for as long as the run goes on and the private data is the same.
        store: saves the adapter that the client keeps after the last round; None if it keeps none.
    """

    id: str
    modality: Modality
    slm: nn.Module = field(repr=False)
    examples: Sequence[Any] = field(repr=False)
    test: Sequence[Any] = field(repr=False)
    settings: ClientConfig = ClientConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    agreement: Agreement = Agreement()
    spent: MutableMapping[str, int | str] = field(repr=False, default_factory=dict[str, int | str])
    store: Callable[[Adapter], None] | None = field(default=None, repr=False)

    @property
    def run(self) -> str:
        """The name of the only run that the client takes part in."""
        return self.agreement.identity.run

    def answer(self, request: Request) -> ClientUpdate:
        """Train as requested. Without secure aggregation, a client answers no other kind of request.

        Raises:
            RefusalError: the request is for secure aggregation, or a plain update would break the client's privacy;
                see also `train` and `keep`.
        """
        if not isinstance(request, TrainRequest) or request.session:
            raise RefusalError(f"client {self.id} was not set up for secure aggregation")
        if request.keep:
            return self.keep(request)
        if isinstance(self.agreement.privacy, ClientPrivacy):
            raise RefusalError(
                f"client {self.id} adds a share of the noise only, too little to hide a plain update; "
                "use secure aggregation"
            )
        return self.train(request)

    def train(self, request: TrainRequest) -> ClientUpdate:
        """Fine-tune the global adapter on the private examples (Algorithm 1, client side).

        A request for statistics is answered with them instead, and nothing is trained. Under client-level privacy, the
        returned adapter is neither clipped nor noised yet: `SecureClient` does both.

        Raises:
            RefusalError: the request is of another run or for something that the client did not agree to, its adapter
                does not fit the client's SLM, or the client has trained for all rounds that its privacy allows.
            UserError: a value is too large for the dtype of `upload`, or the examples have no statistics; nothing was
                sent.
        """
        if statistics.asked_for(request):
            return self._send_statistics(request)
        where, start = f"client {self.id}, round {request.round_index}", time.perf_counter()
        if not self.agreement.trains:
            raise RefusalError(f"client {self.id} trains nothing in this run, whose configuration has a control")
        self._load_request(request)
        self._spend_round()
        loss = self._fit(request.round_index, where)
        adapter = self.agreement.upload.pack(read_adapter(self.slm))
        return self._update(request, adapter, loss, start, where)

    def keep(self, request: TrainRequest, tell: bool = True) -> ClientUpdate:
        """Fine-tune the final adapter once more, and save the result. It never leaves the client, so it needs no noise.

        Args:
            request: a request with `keep`.
            tell: whether the answer contains the loss and the score. Under privacy it never does.

        Returns:
            An update without an adapter.

        Raises:
            RefusalError: the client keeps no adapter, the request is of another run, or its adapter does not fit the
                client's SLM.
        """
        if self.store is None:
            raise RefusalError(f"client {self.id} keeps no adapter of its own, because its client.personal is false")
        where, start = f"client {self.id}, its own adapter", time.perf_counter()
        self._load_request(request)
        loss = self._fit(request.round_index, where, private=False)
        self.store(read_adapter(self.slm))
        return self._update(request, {}, loss, start, where) if tell else ClientUpdate(self.id, request.round_index, {})

    def _send_statistics(self, request: TrainRequest) -> ClientUpdate:
        """Return the statistics of the private examples, with a loss of 0 and without a score."""
        start, settings = time.perf_counter(), self.agreement.statistics
        self._check_run(request)
        if settings is None:
            raise RefusalError(
                f"client {self.id} was asked for statistics, which neither control nor pseudo_labels of its "
                "configuration names"
            )
        if isinstance(self.agreement.privacy, ExamplePrivacy):
            raise RefusalError(f"client {self.id} hides each example by the noise of DP-SGD, and statistics have none")
        statistics.check_request(request, statistics.blank(self.modality, self.examples, settings, self.slm))
        adapter = statistics.moments(self.modality, self.examples, settings, self.slm)
        self._spend_statistics(adapter)
        self._spend_round()
        return self._update(replace(request, evaluate=False), adapter, 0.0, start, "")

    def _spend_statistics(self, adapter: Adapter) -> None:
        """Remember the statistics of this run before any part of them can leave, and refuse to send different ones."""
        name, digest = f"statistics/{self.run}", payload_digest(adapter, {"examples": len(self.examples)})
        if self.spent.setdefault(name, digest) != digest:
            raise RefusalError(
                f"client {self.id} has sent other statistics in this run, and the difference would show which examples "
                "were added, removed or changed. Give the client the examples and the SLM that it had, or start a new "
                "run"
            )

    def _check_run(self, request: TrainRequest) -> None:
        if type(request.round_index) is not int:  # False and 0.0 are equal to 0, but have other names on the disk
            raise RefusalError(f"the index of a round is {request.round_index!r}, which is not an integer")
        if request.run != self.run:
            raise RefusalError(f"a request of run {request.run!r}, and this client is part of {self.run!r}")

    def _load_request(self, request: TrainRequest) -> None:
        """Check that a request is of this client's run, and write its adapter, cut to the client's rank, to the SLM."""
        self._check_run(request)
        try:
            write_adapter(self.slm, request.adapter, request.finite)
        except ValueError as error:
            raise RefusalError(f"client {self.id}: {error}") from error
        if self.agreement.upload.rank is not None:
            write_adapter(self.slm, truncated(request.adapter, self.agreement.upload.rank))

    def _update(
        self, request: TrainRequest, adapter: Adapter, loss: float | None, start: float, where: str
    ) -> ClientUpdate:
        """Return an update with the number of examples, loss, score and seconds; under privacy, the adapter alone."""
        if self.agreement.privacy:
            return ClientUpdate(self.id, request.round_index, adapter)
        tuned, score = time.perf_counter(), None
        if request.evaluate and self.test:
            score = evaluate(self.modality, self.slm, self.test, self.evaluation.batch_size, f"{where}, scoring")
            score = Score(score.sums, score.count, counts=score.counts)
        seconds = {"clients": tuned - start, "evaluation": time.perf_counter() - tuned}
        return ClientUpdate(self.id, request.round_index, adapter, len(self.examples), loss, score, seconds)

    def _spend_round(self) -> None:
        """Under privacy, count a round before any part of its update can leave.

        A round that is repeated counts again, because its noise is new.
        """
        if self.agreement.privacy is None:
            return
        spent = int(self.spent.get("rounds", 0))
        if self.agreement.rounds is not None and spent >= self.agreement.rounds:
            raise RefusalError(f"client {self.id} has spent its privacy in {spent} rounds, all that it agreed to")
        self.spent["rounds"] = spent + 1

    def _fit(self, round_index: int, where: str, private: bool = True) -> float | None:
        """Tune the SLM's adapter. Return the mean loss; None under example-level privacy, which must hide it."""
        if private and isinstance(self.agreement.privacy, ExamplePrivacy):
            return fit_privately(self.modality, self.slm, self.examples, self.settings, self.agreement.privacy, where)
        seed = self.agreement.identity.derive("client", self.id, round_index)
        return fit(self.modality, self.slm, self.examples, self.settings, seed, where)
