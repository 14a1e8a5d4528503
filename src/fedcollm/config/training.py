"""Sections of a run's configuration: what client and server do with their models."""

from typing import Annotated, Literal

from pydantic import Field

from fedcollm.config.base import NonNegative, Positive, PositiveFloat, Section, Share, Weight, one_of
from fedcollm.config.choices import DIVERGENCES, SCHEDULES, comment


class TrainingConfig(Section):
    """What every training loop needs: passes, batches, AdamW and its learning rate."""

    epochs: NonNegative = 1
    """passes over the data per round"""
    batch_size: Positive = 16
    """examples per forward pass"""
    gradient_accumulation: Positive = 1
    """forward passes per optimizer step: a step sees batch_size times as many examples, in the same memory"""
    learning_rate: PositiveFloat = 1.0e-3
    """highest learning rate of AdamW"""
    schedule: Annotated[str, one_of(SCHEDULES), Field(description=comment("schedule"))] = "constant"
    warmup_ratio: Share = 0.0
    """share of a round's steps over which the learning rate rises linearly to its highest"""
    weight_decay: Weight = 0.0
    """decoupled weight decay of AdamW"""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """decay of AdamW's first and second moments; a round has too few steps for the usual 0.999"""
    max_grad_norm: PositiveFloat | None = None
    """longer gradients of a step are scaled down to this L2 norm; null: never"""


class ClientConfig(TrainingConfig):
    """Local fine-tuning."""

    epochs: Positive = 1
    """passes over the client's data per round"""
    proximal: Weight = 0.0
    """μ of FedProx: adds μ/2 ‖θ_k − θ‖² to a client's loss; 0: none"""
    ranks: Annotated[list[Positive], Field(min_length=1)] | None = None
    """ranks of the clients' adapters, in turn: client k trains and sends the first ranks[k] components; null: all"""
    personal: bool = False
    """after the last round each client tunes the final adapter once more, and keeps the result"""

    def rank(self, position: int) -> int | None:
        """Return the rank of the client at a position in the federation's order; None for the whole adapter's."""
        return None if self.ranks is None else self.ranks[position % len(self.ranks)]


class DistillationConfig(Section):
    """Mutual distillation (eq. 4-6)."""

    weight: Weight = 1.0
    """λ of the SLM's loss, and of the LLM's unless llm_weight is set; 0: cross-entropy on D_a only"""
    llm_weight: Weight | None = None
    """λ of the LLM's loss; 0: one-way distillation from LLM to SLM; null: same as weight"""
    temperature: PositiveFloat = 1.0
    """temperature τ of both models' distributions in the divergence"""
    divergence: Annotated[str, one_of(DIVERGENCES), Field(description=comment("divergence"))] = "forward_kl"
    teach_where_better: bool = False
    """teach a model only where the other one knows better (FedMKT's DualMinCE): by the label, else by lower entropy"""
    warmup_rounds: NonNegative = 0
    """rounds over which λ grows linearly to its full weight; 0: full from the first round on"""
    across_tokenizers: bool = False
    """allow an LLM and an SLM with different tokenizers: they teach each other over the tokens that they share"""

    @property
    def weights(self) -> tuple[float, float]:
        """λ of the SLM's and of the LLM's loss."""
        return self.weight, self.weight if self.llm_weight is None else self.llm_weight


class ServerConfig(TrainingConfig):
    """The server's work on the public set D_a."""

    epochs: NonNegative = 1
    """passes over D_a per round; 0: no distillation (FedAvg)"""
    distillation: DistillationConfig = DistillationConfig()
    layer_transfer: Annotated[float, Field(ge=0, le=1)] = 0.0
    """share of the clients' mean change that goes into the LLM's own layers, where the SLM was cut from it by layers"""


class EvaluationConfig(Section):
    """When and how models are scored."""

    every: Positive = 1
    """score after every n-th round (the last round is always scored)"""
    clients: Literal["every", "last", "never"] = "every"
    """when the clients' own tuned SLMs are scored: in every scored round, in the last one only, or never"""
    batch_size: Positive = 32
    """examples per forward pass when scoring"""

    def scores(self, index: int, rounds: int) -> bool:
        """Return whether the models are scored after a round, 1 being the first of so many."""
        return index == rounds or index % self.every == 0

    def scores_clients(self, index: int, rounds: int) -> bool:
        """Return whether the clients' own tuned SLMs are scored in that round too."""
        asked = self.clients == "every" or (self.clients == "last" and index == rounds)
        return asked and self.scores(index, rounds)
