"""A client: private examples, and one thing that it does with them. It keeps nothing between rounds."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fedcollm.errors import RefusalError
from fedcollm.messages import ClientUpdate, Request, TrainRequest, misfit
from fedcollm.models import read_adapter, write_adapter
from fedcollm.seeding import derive_seed
from fedcollm.tasks.base import Task
from fedcollm.training import evaluate, fit


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
        evaluation_batch_size: examples a forward pass when scoring.
        seed: the run's seed.
        run: the only run that this client takes part in.
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

    def answer(self, request: Request) -> ClientUpdate:
        """Train; that is all that a client without secure aggregation does.

        Raises:
            RefusalError: anything else is asked for.
        """
        if not isinstance(request, TrainRequest) or request.session:
            raise RefusalError(f"client {self.id} was not set up for secure aggregation")
        return self.train(request)

    def train(self, request: TrainRequest) -> ClientUpdate:
        """Fine-tune the global adapter on the private examples (Algorithm 1, client side).

        Raises:
            RefusalError: another run, or an adapter that does not fit this client's SLM.
        """
        if request.run != self.run:
            raise RefusalError(f"a request of run {request.run!r}, and this client is part of {self.run!r}")
        if reason := misfit(request.adapter, read_adapter(self.slm)):
            raise RefusalError(f"the adapter to tune does not fit this client's SLM: {reason}")
        where = f"client {self.id}, round {request.round_index}"
        start = time.perf_counter()
        write_adapter(self.slm, request.adapter)
        loss = fit(
            self.task,
            self.slm,
            self.examples,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=derive_seed(self.seed, "client", self.id, request.round_index),
            where=where,
        )
        tuned = time.perf_counter()
        score = None
        if request.evaluate and self.test:
            score = evaluate(self.task, self.slm, self.test, self.evaluation_batch_size, f"{where}, scoring")
        seconds = {"clients": tuned - start, "evaluation": time.perf_counter() - tuned}
        adapter = read_adapter(self.slm)
        return ClientUpdate(self.id, request.round_index, adapter, len(self.examples), loss, score, seconds)
