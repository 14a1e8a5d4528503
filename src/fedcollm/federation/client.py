"""A client: private examples, and one thing that it does with them.

It keeps nothing between rounds, but for the number of them that it spent privacy on.
"""

import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fedcollm.errors import RefusalError
from fedcollm.federation.upload_format import WHOLE, UploadFormat, truncated
from fedcollm.messages import Adapter, ClientUpdate, Request, Score, TrainRequest
from fedcollm.modalities.base import Task
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.privacy.accounting import ClientPrivacy, ExamplePrivacy, Privacy
from fedcollm.seeding import derive_seed
from fedcollm.training.dp_sgd import fit_privately
from fedcollm.training.fine_tuning import evaluate, fit


@dataclass(frozen=True)
class Client:
    """One owner of private data.

    Attributes:
        id: its name in the federation.
        task: the modality.
        slm: base SLM with an adapter, whose values are overwritten by every request.
        examples: D_k; never leaves this object.
        test: examples to score the tuned SLM on; if there are none, it is not scored.
        epochs: local epochs a round.
        batch_size: examples a step.
        learning_rate: of the local AdamW.
        proximal: μ of FedProx; 0: none.
        max_grad_norm: longest gradient of a step; None: any.
        evaluation_batch_size: examples a forward pass when scoring.
        seed: the run's seed.
        run: the only run that this client takes part in.
        privacy: what its update must hide; None: nothing. An update under privacy comes without any number beside it.
        rounds: under privacy, how often it trains; None: as often as it is asked.
        spent: under privacy, `rounds` to how often it did, kept as long as its data is the same.
        upload: the form that its adapter travels in; if that is of a lower rank, it trains those components only.
        store: puts the adapter away that it keeps after the last round; None: it keeps none.
    """

    id: str
    task: Task
    slm: nn.Module = field(repr=False)
    examples: Sequence[Any] = field(repr=False)
    test: Sequence[Any] = field(repr=False)
    epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 1e-3
    evaluation_batch_size: int = 32
    seed: int = 0
    run: str = ""
    privacy: Privacy | None = None
    rounds: int | None = None
    spent: MutableMapping[str, int] = field(repr=False, default_factory=dict)
    proximal: float = 0.0
    max_grad_norm: float | None = None
    upload: UploadFormat = WHOLE
    store: Callable[[Adapter], None] | None = field(default=None, repr=False)

    def answer(self, request: Request) -> ClientUpdate:
        """Train; that is all that a client without secure aggregation does.

        Raises:
            RefusalError: anything else is asked for.
        """
        if not isinstance(request, TrainRequest) or request.session:
            raise RefusalError(f"client {self.id} was not set up for secure aggregation")
        if request.keep:
            return self.keep(request)
        if isinstance(self.privacy, ClientPrivacy):
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
        adapter = self.upload.pack(read_adapter(self.slm))
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
        if self.upload.rank is not None:
            write_adapter(self.slm, truncated(request.adapter, self.upload.rank))

    def _update(
        self, request: TrainRequest, adapter: Adapter, loss: float | None, start: float, where: str
    ) -> ClientUpdate:
        """An adapter with the numbers beside it, of which there are none under privacy."""
        if self.privacy:
            return ClientUpdate(self.id, request.round_index, adapter)
        tuned, score = time.perf_counter(), None
        if request.evaluate and self.test:
            score = evaluate(self.task, self.slm, self.test, self.evaluation_batch_size, f"{where}, scoring")
            score = Score(score.sums, score.count)
        seconds = {"clients": tuned - start, "evaluation": time.perf_counter() - tuned}
        return ClientUpdate(self.id, request.round_index, adapter, len(self.examples), loss, score, seconds)

    def _spend(self) -> None:
        """Count a round before anything of it can leave; one that is tried again counts again, its noise being new."""
        if self.privacy is None:
            return
        spent = self.spent.get("rounds", 0)
        if self.rounds is not None and spent >= self.rounds:
            raise RefusalError(f"client {self.id} has spent its privacy in {spent} rounds, all that it agreed to")
        self.spent["rounds"] = spent + 1

    def _fit(self, round_index: int, where: str, private: bool = True) -> float | None:
        """Tune the SLM's adapter; returns the mean loss, which does not leave the client under privacy."""
        settings: dict[str, Any] = {
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "where": where,
        }
        if private and isinstance(self.privacy, ExamplePrivacy):
            return fit_privately(self.task, self.slm, self.examples, privacy=self.privacy, **settings)
        seed = derive_seed(self.seed, "client", self.id, round_index)
        settings |= {"proximal": self.proximal, "max_grad_norm": self.max_grad_norm}
        return fit(self.task, self.slm, self.examples, epochs=self.epochs, seed=seed, **settings)
