"""The `client`, `server` and `evaluation` sections of the configuration: training, distillation and scoring."""

from typing import Annotated, Literal

from pydantic import Field

from fedcollm.config.augmentation import AugmentationConfig
from fedcollm.config.base import NonNegative, Positive, PositiveFloat, Section, Share, Weight, one_of
from fedcollm.config.choices import DIVERGENCES, GATES, LOSSES, SCHEDULES, comment
from fedcollm.config.control import PseudoLabelConfig


class TrainingConfig(Section):
    """Settings of a training loop with AdamW, common to clients and server."""

    epochs: NonNegative = 1
    """passes over the data per round"""
    batch_size: Positive = 16
    """examples per forward pass; lower it if memory runs out"""
    gradient_accumulation: Positive = 1
    """batches per optimizer step: a step then covers batch_size times as many examples, in the same memory"""
    learning_rate: PositiveFloat = 1.0e-3
    """peak learning rate of AdamW"""
    schedule: Annotated[str, one_of(SCHEDULES), Field(description=comment("schedule"))] = "constant"
    warmup_ratio: Share = 0.0
    """fraction of a round's steps over which the learning rate rises linearly from 0 to its peak"""
    weight_decay: Weight = 0.0
    """decoupled weight decay of AdamW; 0: none"""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """AdamW's β₁ and β₂; the usual β₂ of 0.999 averages over more steps than a round has"""
    max_grad_norm: PositiveFloat | None = None
    """gradient clipping: scale a step's gradient down to this L2 norm if it is larger; null: no clipping"""

    @property
    def at_once(self) -> int:
        """Number of examples of a batch that are in memory at once."""
        return self.batch_size


class RoundConfig(TrainingConfig):
    """Settings of a training loop that is part of a round."""

    micro_batch_size: Positive | None = None
    """examples in memory at once: a larger batch is computed in parts, with the same gradient; null: whole batches"""

    @property
    def at_once(self) -> int:
        """Number of examples of a batch that are in memory at once."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size)


class ClientConfig(RoundConfig):
    """The clients' local fine-tuning of the SLM on their private data."""

    epochs: Positive = 1
    """passes over the client's private data per round"""
    loss: Annotated[str, one_of(LOSSES), Field(description=comment("loss"))] = "cross_entropy"
    loss_q: Annotated[float, Field(gt=0, le=1)] = 0.7
    """q of the generalized cross-entropy: near 0, it is the plain one; up to 1, wrong labels count less and less"""
    loss_weights: tuple[Weight, Weight] = (0.1, 1.0)
    """α and β of the symmetric cross-entropy: weights of the plain and of the reverse cross-entropy"""
    loss_trim: Share = 0.0
    """fraction of each batch's rows (labels, or tokens of answers) with the largest losses to leave out; 0: none"""
    proximal: Weight = 0.0
    """μ of FedProx, which adds μ/2 ‖θ_k − θ‖² to the loss to keep a client near the global adapter; 0: off"""
    ranks: Annotated[list[Positive], Field(min_length=1)] | None = None
    """LoRA ranks assigned to the clients in turn; a client trains and sends only that many components; null: all"""
    held_out: Share = 0.0
    """share of its examples that a client scores its adapter on and never trains on, for aggregation held_out"""
    personal: bool = False
    """personalization: after the last round, each client fine-tunes the final adapter once more and keeps the result"""
    augmentation: AugmentationConfig | None = None
    """change the training examples anew in every epoch, without changing their labels; null: no, {}: as below"""

    @property
    def has_plain_loss(self) -> bool:
        """Whether the loss is the mean cross-entropy over all labelled rows."""
        return self.loss == "cross_entropy" and not self.loss_trim

    @property
    def changed_loss(self) -> tuple[str, object, object]:
        """The dotted key that changes the loss, its value, and the one that does not."""
        if self.loss != "cross_entropy":
            return "client.loss", self.loss, "cross_entropy"
        return "client.loss_trim", f"{self.loss_trim:g}", 0

    def rank(self, position: int) -> int | None:
        """Return the LoRA rank of a client, or None for the full rank of the adapter.

        Args:
            position: position of the client in the order of the federation, starting at 0.
        """
        return None if self.ranks is None else self.ranks[position % len(self.ranks)]


class DistillationConfig(Section):
    """Mutual distillation between the LLM and the SLM (eq. 4-6 of the paper)."""

    weight: Weight = 1.0
    """λ, weight of the divergence in the SLM's loss and, if llm_weight is null, in the LLM's; 0: cross-entropy only"""
    llm_weight: Weight | None = None
    """λ of the LLM's loss; 0: one-way distillation, the LLM only teaches; null: same as weight"""
    temperature: PositiveFloat = 1.0
    """temperature τ that divides both models' logits in the divergence; above 1, distributions are softer"""
    divergence: Annotated[str, one_of(DIVERGENCES), Field(description=comment("divergence"))] = "forward_kl"
    teach_where_better: bool = False
    """teach a model only where the other knows better (FedMKT's DualMinCE), by the label or else by lower entropy"""
    gate: Annotated[str, one_of(GATES), Field(description=comment("gate"))] = "none"
    warmup_rounds: NonNegative = 0
    """rounds over which λ rises linearly to its full value; 0: full value from the first round"""
    across_tokenizers: bool = False
    """allow an LLM and an SLM with different tokenizers, which are compared over the tokens that they share"""

    @property
    def weights(self) -> tuple[float, float]:
        """λ of the SLM's loss and λ of the LLM's loss."""
        return self.weight, self.weight if self.llm_weight is None else self.llm_weight


class ServerConfig(RoundConfig):
    """The server's training of both models on the public set D_a."""

    epochs: NonNegative = 1
    """passes over the public set D_a per round; 0: no distillation, which leaves plain FedAvg"""
    unlabelled_per_round: NonNegative | None = None
    """unlabelled public examples in a round, the next ones in each round and then from the start again; null: all"""
    even_labels: bool = False
    """give every batch the same share of labelled examples, so that a single one never has all of cross-entropy"""
    distillation: DistillationConfig = DistillationConfig()
    pseudo_labels: PseudoLabelConfig | None = None
    """labels for the unlabelled public examples, from sums that clients send once; null: none, {}: as below"""
    fresh_slm_epochs: NonNegative = 0
    """after the last round, distil a new SLM from the LLM in so many passes over D_a: no client's backdoor is left"""
    layer_transfer: Annotated[float, Field(ge=0, le=1)] = 0.0
    """fraction of the clients' mean update to add to the LLM's adapter too, if the SLM consists of the LLM's layers"""


class EvaluationConfig(Section):
    """When and how the models are scored on the test examples."""

    every: Positive = 1
    """score the models after every n-th round; the last round is always scored"""
    clients: Literal["every", "last", "never"] = "every"
    """whether to score each client's SLM after its local fine-tuning: in every scored round, only the last, or never"""
    batch_size: Positive = 32
    """examples per forward pass when scoring"""
    exhibits: NonNegative = 12
    """test examples that the report shows, half of them wrong for the SLM; 0 keeps all out of the run directory"""

    def scores(self, index: int, rounds: int) -> bool:
        """Return whether the models are scored after round `index` (1 is the first) of `rounds` rounds."""
        return index == rounds or index % self.every == 0

    def scores_clients(self, index: int, rounds: int) -> bool:
        """Return whether the clients' fine-tuned SLMs are scored in round `index` of `rounds` rounds too."""
        asked = self.clients == "every" or (self.clients == "last" and index == rounds)
        return asked and self.scores(index, rounds)
