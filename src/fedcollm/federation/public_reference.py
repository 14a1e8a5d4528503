"""What the server's labelled public examples say of the clients' changes: its own update, and a check of the mean."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedcollm.config import ClientConfig
from fedcollm.messages import Adapter, TrainRequest
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.seeding import RunIdentity
from fedcollm.training.distillation import ModelPair
from fedcollm.training.fine_tuning import evaluate, fit


@dataclass(frozen=True)
class OwnUpdate:
    """The update that the server would send if it were a client with the labelled public examples.

    Attributes:
        pair: the models; only the SLM is trained.
        examples: the labelled part of D_a.
        settings: settings of the clients' fine-tuning.
        identity: the run, whose seed decides the order of the examples.
    """

    pair: ModelPair = field(repr=False)
    examples: Sequence[Any] = field(repr=False)
    settings: ClientConfig
    identity: RunIdentity

    def __call__(self, request: TrainRequest) -> Adapter:
        """Return θ after one client's round of training; the SLM holds θ again afterward.

        Raises:
            NonFiniteError: the loss or a weight became NaN or infinite.
        """
        modality, slm, index = self.pair.modality.of("slm"), self.pair.slm, request.round_index
        write_adapter(slm, request.adapter)
        try:
            seed = self.identity.derive("reference", index)
            fit(modality, slm, self.examples, self.settings, seed, f"server's own update, round {index}")
            return read_adapter(slm)
        finally:
            slm.zero_grad(set_to_none=True)
            write_adapter(slm, request.adapter)


@dataclass(frozen=True)
class PublicScore:
    """The score of the SLM with some adapter on labelled public examples.

    Attributes:
        pair: the models; only the SLM is scored.
        examples: the labelled part of D_a.
        batch_size: number of examples per batch.
    """

    pair: ModelPair = field(repr=False)
    examples: Sequence[Any] = field(repr=False)
    batch_size: int

    def __call__(self, adapter: Adapter) -> float:
        """Return the main metric; the SLM holds the adapter afterward."""
        write_adapter(self.pair.slm, adapter)
        modality = self.pair.modality.of("slm")
        return evaluate(modality, self.pair.slm, self.examples, self.batch_size, "checking the clients' mean").value
