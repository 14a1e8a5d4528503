"""A client: it fine-tunes the global adapter on its private examples.

Whatever goes wrong on these examples ends in the same answer as a success, with a change of zero: that a training
failed would tell the server something about the data. Only a request that would be refused whatever the data are is
refused. Between rounds a client keeps no state except what it has answered and spent.
"""

import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from fedcollm.config import AskedStatistics, ClientConfig, EvaluationConfig
from fedcollm.errors import RefusalError, UserError
from fedcollm.federation import held_out, statistics
from fedcollm.federation.answered import PlainRounds, check_round
from fedcollm.federation.download_format import EXACT, DownloadFormat
from fedcollm.federation.limits import Limits
from fedcollm.federation.operator import Operator
from fedcollm.federation.quantization import rounding_seed
from fedcollm.federation.scoring import score_quietly
from fedcollm.federation.sent_statistics import SentStatistics
from fedcollm.federation.upload_format import WHOLE, UploadFormat, truncated
from fedcollm.messages import Adapter, ClientUpdate, Request, Score, TrainRequest
from fedcollm.modalities.base import Modality, outputs
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.privacy.accounting import ClientPrivacy, ExamplePrivacy, Privacy
from fedcollm.seeding import RunIdentity
from fedcollm.training.dp_sgd import fit_privately
from fedcollm.training.fine_tuning import fit
from fedcollm.training.screening import Screen

_CHANGED = (
    "the examples or the SLM are not those that statistics were sent of in this run. The same statistics as before are "
    "sent again: new ones would show what has changed, and so would a refusal."
)


@dataclass(frozen=True)
class Agreement:
    """What a client agrees to before it takes part in a run.

    Attributes:
        identity: the only run that the client takes part in, and the seed of that run.
        rounds: the number of rounds of the run: the client refuses any other round, and the same round twice, and under
            privacy it trains no more often. None sets no limit.
        privacy: what an update must hide; None if nothing. An update under privacy is the adapter alone, without any
            number of the client.
        upload: the form in which the client sends its adapter. If it has a lower rank, the client trains only those
            components.
        download: the form in which it receives θ.
        statistics: the statistics of its examples that the client sends if it is asked for them.
        trains: whether the client trains at all.
        limits: what the client trains, and what it lets out of a training.
    """

    identity: RunIdentity = RunIdentity()
    rounds: int | None = None
    privacy: Privacy | None = None
    upload: UploadFormat = WHOLE
    download: DownloadFormat = EXACT
    statistics: AskedStatistics = field(default_factory=AskedStatistics)
    trains: bool = True
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Client:
    """An owner of private data.

    Attributes:
        id: the client's name in the federation.
        modality: makes batches, outputs, losses and scores from its examples.
        slm: base SLM with an adapter, whose values every request overwrites.
        examples: D_k; they never leave this object.
        test: examples on which the tuned SLM is scored; it is not scored if there are none.
        held_out: private examples that it does not train on, and scores its SLM on in every round.
        screen: leaves out examples whose labels are probably wrong, in every round; None trains on all of them.
        settings: settings of local fine-tuning.
        evaluation: settings of scoring.
        agreement: what the client agreed to with the federation.
        spent: what can't be given twice. Under privacy, `rounds` maps to the number of rounds that the client has
            trained for. `statistics/RUN` maps to a digest of the statistics that it has sent in a run and `sent/RUN` to
            these statistics, `kept/RUN` to the round after which it kept an adapter, and `answered/RUN` to the last
            round that it sent a plain update in. Whoever builds the client keeps it for as long as the run goes on and
            the private data is the same.
        operator: the one who runs the client.
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
    operator: Operator = field(repr=False, default_factory=Operator)
    held_out: Sequence[Any] = field(repr=False, default=())
    screen: Screen | None = field(repr=False, default=None)

    @property
    def run(self) -> str:
        """The name of the only run that the client takes part in."""
        return self.agreement.identity.run

    def answer(self, request: Request) -> ClientUpdate:
        """Train as requested. Without secure aggregation, a client answers no other kind of request.

        Raises:
            RefusalError: the request is for secure aggregation, of a round that was answered before, or a plain update
                would break the client's privacy; see also `train` and `keep`.
        """
        if not isinstance(request, TrainRequest) or request.session:
            raise RefusalError(f"client {self.id} was not set up for secure aggregation")
        if request.keep:
            return self.keep(request)
        request = self.agreement.download.received(request)
        if isinstance(self.agreement.privacy, ClientPrivacy):
            raise RefusalError(
                f"client {self.id} adds a share of the noise only, too little to hide a plain update; "
                "use secure aggregation"
            )
        if self.agreement.rounds is None:
            return self.train(request)
        self._check_run(request)
        answered = PlainRounds(self.spent, self.run)
        answered.check(request)
        update = self.train(request)
        answered.note(request)
        return update

    def train(self, request: TrainRequest) -> ClientUpdate:
        """Fine-tune the global adapter on the private examples (Algorithm 1, client side).

        A request for statistics is answered with them instead, and nothing is trained. Under client-level privacy, the
        returned adapter is neither clipped nor noised yet: `SecureClient` does both.

        Returns:
            The update. If anything fails on this client's data, the change is zero and the loss 0; `operator` is told.

        Raises:
            RefusalError: the request is of another run or for something that the client did not agree to, its adapter
                does not fit the client's SLM, or the client has trained for all rounds that its privacy allows.
        """
        self.operator.failure = None
        if statistics.asked_for(request):
            return self._send_statistics(request)
        where, start = f"client {self.id}, round {request.round_index}", time.perf_counter()
        if not self.agreement.trains:
            raise RefusalError(f"client {self.id} trains nothing in this run, whose configuration has a control")
        unchanged = self._load_request(request)
        self._spend_round()
        try:
            adapter, loss = self._tuned(request, where)
        except Exception as error:  # anything here may depend on the data
            self._set_back(request, where, error)
            adapter, loss = unchanged, 0.0
        sent = self.agreement.upload.sealed(adapter, request.adapter, rounding_seed(self.id, request.round_index))
        return self._update(request, sent, loss, start, where)

    def keep(self, request: TrainRequest) -> ClientUpdate:
        """Fine-tune the final adapter once more, and save the result. It never leaves the client, so it needs no noise.

        It is done once in a run. The answer is the same whatever comes of it; only `operator` learns that.

        Args:
            request: a request with `keep`.

        Returns:
            An update without an adapter and without numbers.

        Raises:
            RefusalError: the client keeps no adapter, the request is of another run or another round than the one after
                the last, or its adapter does not fit the client's SLM.
        """
        if self.operator.store is None:
            raise RefusalError(f"client {self.id} keeps no adapter of its own, because its client.personal is false")
        self.operator.failure = None
        where = f"client {self.id}, its own adapter"
        self._load_request(request)
        if f"kept/{self.run}" not in self.spent:
            try:
                self._fit(request.round_index, where, private=False)
                self.operator.store(read_adapter(self.slm))
                self.operator.kept = self._score(where)
            except Exception as error:
                self.operator.tell(where, error)
            self.spent[f"kept/{self.run}"] = request.round_index
        return ClientUpdate(self.id, request.round_index, {})

    def _tuned(self, request: TrainRequest, where: str) -> tuple[Adapter, float | None]:
        """Return θ_k as it is sent, and the mean loss, after they were found to be within the limits.

        Raises:
            Exception: whatever the modality, the model or the limits object to.
        """
        agreement = self.agreement
        if agreement.limits.start_loss is not None:
            agreement.limits.check_start(where, self._start_loss())
        loss = self._fit(request.round_index, where)
        start = agreement.upload.part(request.adapter)
        adapter = agreement.limits.clipped(agreement.upload.part(read_adapter(self.slm)), start)
        adapter = agreement.upload.pack(adapter)
        agreement.limits.check_end(where, loss, adapter, start)
        return adapter, loss

    def _set_back(self, request: TrainRequest, where: str, error: Exception) -> None:
        """Tell the operator of a training that failed, and set the SLM back to θ."""
        self.operator.tell(where, error)
        self.slm.zero_grad(set_to_none=True)
        self._write(request)

    def _start_loss(self) -> float:
        """Return the loss of θ on the first batch of the private examples."""
        self.slm.eval()
        with torch.inference_mode():
            batch = self.modality.collate(self.examples[: self.settings.batch_size])
            return float(outputs(self.modality, self.slm, batch)[1])

    def _send_statistics(self, request: TrainRequest) -> ClientUpdate:
        """Return the statistics of the private examples, with a loss of 0 and without a score.

        Examples that have none, or others than were asked for, are answered with zeros. What was sent once in a run is
        sent again, whatever the examples are now.
        """
        start, agreed = time.perf_counter(), self.agreement.statistics
        self._check_run(request)
        if isinstance(self.agreement.privacy, ExamplePrivacy):
            raise RefusalError(f"client {self.id} hides each example by the noise of DP-SGD, and statistics have none")
        asked = statistics.check_request(request, agreed)
        try:
            adapter = statistics.own(self.modality, self.examples, asked, self.slm)
            statistics.check_fit(request, adapter)
        except Exception as error:
            self.operator.tell(f"client {self.id}, statistics", error)
            adapter = request.adapter
        sent, examples = SentStatistics(self.spent, self.run).settle(adapter, len(self.examples))
        if sent is not adapter:
            self.operator.tell(f"client {self.id}, statistics", UserError(_CHANGED))
        self._spend_round()
        update = self._update(replace(request, evaluate=False), sent, 0.0, start, "")
        return update if self.agreement.privacy else replace(update, examples=examples)

    def _check_run(self, request: TrainRequest) -> None:
        if request.run != self.run:
            raise RefusalError(f"a request of run {request.run!r}, and this client is part of {self.run!r}")
        check_round(request, self.agreement.rounds)

    def _load_request(self, request: TrainRequest) -> Adapter:
        """Check that a request is of this client's run, and write its adapter, cut to the client's rank, to the SLM.

        Returns:
            The adapter in the form in which the client would send it back unchanged.
        """
        self._check_run(request)
        if request.finite:  # otherwise it is refused below
            self.agreement.limits.check_request(request)
        try:
            self._write(request)
            return self.agreement.upload.pack(read_adapter(self.slm))
        except (ValueError, UserError) as error:
            raise RefusalError(f"client {self.id}: {error}") from error

    def _write(self, request: TrainRequest) -> None:
        write_adapter(self.slm, request.adapter, request.finite)
        if self.agreement.upload.rank is not None:
            write_adapter(self.slm, truncated(request.adapter, self.agreement.upload.rank))

    def _update(
        self, request: TrainRequest, adapter: Adapter, loss: float | None, start: float, where: str
    ) -> ClientUpdate:
        """Return an update with the number of examples, loss, score and seconds; under privacy, the adapter alone."""
        if self.agreement.privacy:
            return ClientUpdate(self.id, request.round_index, adapter)
        tuned = time.perf_counter()
        score = self._score(where) if request.evaluate and self.test else None
        if self.held_out and not statistics.asked_for(request):
            own = self.modality, self.slm, self.held_out, self.evaluation.batch_size, where, self.operator
            score = held_out.joined(score, score_quietly(*own))
        seconds = {"clients": tuned - start, "evaluation": time.perf_counter() - tuned}
        return ClientUpdate(self.id, request.round_index, adapter, len(self.examples), loss, score, seconds)

    def _score(self, where: str) -> Score | None:
        """Return the SLM's score on the test examples, without what a client never sends; None without examples."""
        if not self.test:
            return None
        return score_quietly(self.modality, self.slm, self.test, self.evaluation.batch_size, where, self.operator)

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
        examples = self.screen.screened(self.modality, self.slm, self.examples, where) if self.screen else self.examples
        return fit(self.modality, self.slm, examples, self.settings, seed, where)
