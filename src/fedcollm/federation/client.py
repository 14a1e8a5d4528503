"""A client: private examples, and one thing that it does with them.

It keeps nothing between rounds, except the number of them that it spent privacy on.
"""

import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fedcollm.config import ClientConfig, EvaluationConfig
from fedcollm.errors import RefusalError
from fedcollm.federation.upload_format import WHOLE, UploadFormat, truncated
from fedcollm.messages import Adapter, ClientUpdate, Request, Score, TrainRequest
from fedcollm.modalities.base import Modality
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.privacy.accounting import ClientPrivacy, ExamplePrivacy, Privacy
from fedcollm.seeding import RunIdentity
from fedcollm.training.dp_sgd import fit_privately
from fedcollm.training.fine_tuning import evaluate, fit


@dataclass(frozen=True)
class Agreement:
    """What a client has agreed to before it takes part.

    Attributes:
        identity: the only run that it takes part in, and its seed.
        rounds: under privacy, how often it trains; None: as often as it is asked.
        privacy: what its update must hide; None: nothing. An update under privacy comes without any number beside it.
        upload: the form that its adapter travels in; with a lower rank, it trains those components only.
    """

    identity: RunIdentity = RunIdentity()
    rounds: int | None = None
    privacy: Privacy | None = None
    upload: UploadFormat = WHOLE


@dataclass(frozen=True)
class Client:
    """One owner of private data.

    Attributes:
        id: its name in the federation.
        modality: reads its examples.
        slm: base SLM with an adapter, whose values are overwritten by every request.
        examples: D_k; never leaves this object.
        test: examples to score the tuned SLM on; if there are none, it is not scored.
        settings: of local fine-tuning.
        evaluation: of scoring.
        agreement: with the federation.
        spent: under privacy, `rounds` to how often it trained, kept as long as its data is the same.
        store: puts the adapter away that it keeps after the last round; None: it keeps none.
    """

    id: str
    modality: Modality
    slm: nn.Module = field(repr=False)
    examples: Sequence[Any] = field(repr=False)
    test: Sequence[Any] = field(repr=False)
    settings: ClientConfig = ClientConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    agreement: Agreement = Agreement()
    spent: MutableMapping[str, int] = field(repr=False, default_factory=dict)
    store: Callable[[Adapter], None] | None = field(default=None, repr=False)

    @property
    def run(self) -> str:
        """The only run that it takes part in."""
        return self.agreement.identity.run

    def answer(self, request: Request) -> ClientUpdate:
        """Train; that is all that a client without secure aggregation does.

        Raises:
            RefusalError: anything else is asked for.
        """
        if not isinstance(request, TrainRequest) or request.session:
            raise RefusalError(f"client {self.id} was not set up for secure aggregation")
        if request.keep:
            return self.keep(request)
        if isinstance(self.agreement.privacy, ClientPrivacy):
            raise RefusalError(f"client {self.id} adds a share of the noise only, so that a plain update would show")
        return self.train(request)

    def train(self, request: TrainRequest) -> ClientUpdate:
        """Fine-tune the global adapter on the private examples (Algorithm 1, client side).

        Under client-level privacy the adapter is still the plain one: `SecureClient` clips it and adds noise.

        Raises:
            RefusalError: another run, an adapter that does not fit this client's SLM, or the privacy is spent.
            UserError: a value does not fit `upload`; nothing was sent.
        """
        where, start = f"client {self.id}, round {request.round_index}", time.perf_counter()
        self._begin(request)
        self._spend()
        loss = self._fit(request.round_index, where)
        adapter = self.agreement.upload.pack(read_adapter(self.slm))
        return self._update(request, adapter, loss, start, where)

    def keep(self, request: TrainRequest, tell: bool = True) -> ClientUpdate:
        """Fine-tune the final adapter once more and keep the result, which never leaves and so needs no noise.

        Args:
            request: with `keep`.
            tell: answer with loss and score, unless under privacy; else with nothing but the fact.

        Raises:
            RefusalError: this client keeps none, another run, or an adapter that does not fit this client's SLM.
        """
        if self.store is None:
            raise RefusalError(f"client {self.id} keeps no adapter of its own: client.personal is false there")
        where, start = f"client {self.id}, its own adapter", time.perf_counter()
        self._begin(request)
        loss = self._fit(request.round_index, where, private=False)
        self.store(read_adapter(self.slm))
        return self._update(request, {}, loss, start, where) if tell else ClientUpdate(self.id, request.round_index, {})

    def _begin(self, request: TrainRequest) -> None:
        """Take the adapter of a request up, as far as this client's rank goes."""
        if request.run != self.run:
            raise RefusalError(f"a request of run {request.run!r}, and this client is part of {self.run!r}")
        try:
            write_adapter(self.slm, request.adapter)
        except ValueError as error:
            raise RefusalError(f"client {self.id}: {error}") from error
        if self.agreement.upload.rank is not None:
            write_adapter(self.slm, truncated(request.adapter, self.agreement.upload.rank))

    def _update(
        self, request: TrainRequest, adapter: Adapter, loss: float | None, start: float, where: str
    ) -> ClientUpdate:
        """An adapter with the numbers beside it, of which there are none under privacy."""
        if self.agreement.privacy:
            return ClientUpdate(self.id, request.round_index, adapter)
        tuned, score = time.perf_counter(), None
        if request.evaluate and self.test:
            score = evaluate(self.modality, self.slm, self.test, self.evaluation.batch_size, f"{where}, scoring")
            score = Score(score.sums, score.count)
        seconds = {"clients": tuned - start, "evaluation": time.perf_counter() - tuned}
        return ClientUpdate(self.id, request.round_index, adapter, len(self.examples), loss, score, seconds)

    def _spend(self) -> None:
        """Count a round before anything of it can leave; one that is tried again counts again, its noise being new."""
        if self.agreement.privacy is None:
            return
        spent = self.spent.get("rounds", 0)
        if self.agreement.rounds is not None and spent >= self.agreement.rounds:
            raise RefusalError(f"client {self.id} has spent its privacy in {spent} rounds, all that it agreed to")
        self.spent["rounds"] = spent + 1

    def _fit(self, round_index: int, where: str, private: bool = True) -> float | None:
        """Tune the SLM's adapter; return the mean loss, which does not leave the client under privacy."""
        if private and isinstance(self.agreement.privacy, ExamplePrivacy):
            return fit_privately(self.modality, self.slm, self.examples, self.settings, self.agreement.privacy, where)
        seed = self.agreement.identity.derive("client", self.id, round_index)
        return fit(self.modality, self.slm, self.examples, self.settings, seed, where)
