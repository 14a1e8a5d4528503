"""Sections of a run's configuration: rounds, aggregation, secure aggregation, privacy and deadlines."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedcollm.config.base import Positive, PositiveFloat, Section, Share, one_of
from fedcollm.config.choices import AGGREGATIONS, SERVER_OPTIMIZERS, comment


def asked_clients(count: int, fraction: float) -> int:
    """Return how many of `count` clients a round asks.

    >>> [asked_clients(4, fraction) for fraction in (1.0, 0.5, 0.01)]
    [4, 2, 1]
    """
    return min(count, max(1, round(fraction * count)))


class SecureAggregationConfig(Section):
    """Secure aggregation, with the numbers that all parties must agree on; `true` or `false` alone sets `enabled`."""

    enabled: bool = False
    """true: the server learns only the sum of the clients' changes, and nothing of a single client"""
    threshold: Positive | None = None
    """clients needed to open a sum, more than 2/3 of those asked in a round; null: the smallest such number"""
    value_range: PositiveFloat = 1.0
    """largest change of a parameter in a round; a larger one is an error (privacy at level client has its own range)"""
    max_weight: Positive = 4096
    """largest number of examples of a client"""
    simulate_quantization: bool = False
    """without secure aggregation: round values as it does, so that a run gives exactly the bits that it would give"""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"enabled": value} if isinstance(value, bool) else value


class DeadlinesConfig(Section):
    """How long the server of a deployment waits, in seconds; a client that takes longer is lost for the round."""

    training: PositiveFloat = 3600.0
    """for a client's local training"""
    phase: PositiveFloat = 120.0
    """for a client's answer in a later phase of secure aggregation"""
    absence: PositiveFloat = 60.0
    """for a client that is not connected to come back"""


class PrivacyConfig(Section):
    """Differential privacy: what a client's update must hide, and how well. All parties must agree on it."""

    level: Literal["client", "example"]
    """what is hidden: client: a client's whole part; example: every single example"""
    clip: PositiveFloat
    """largest L2 norm of a client's change (level client) or of an example's gradient (level example)"""
    noise_multiplier: PositiveFloat
    """standard deviation of the noise in a sum, as a multiple of clip"""
    delta: Annotated[float, Field(gt=0, lt=1)]
    """δ, the chance that the guarantee may fail: well below 1 / number of clients or examples"""
    sampling_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """level example: the chance q of every example to be in a step's batch; a round has epochs / q steps"""


class ServerOptimizerConfig(Section):
    """What the server does with the clients' mean change, its pseudo-gradient (Reddi et al., arXiv 2003.00295)."""

    kind: Annotated[str, one_of(SERVER_OPTIMIZERS), Field(description=comment("kind"))] = "average"
    learning_rate: PositiveFloat = 1.0
    """server learning rate η; fedadam wants about 0.01"""
    momentum: Share = 0.9
    """β of fedavgm, β₁ of fedadam"""
    decay: Share = 0.99
    """β₂ of fedadam"""
    tau: PositiveFloat = 1.0e-3
    """τ of fedadam, its adaptivity: added to the root of the second moment"""

    @property
    def is_plain(self) -> bool:
        """Whether the mean is taken as it is (FedAvg)."""
        return self.kind == "average" and self.learning_rate == 1


class FederationConfig(Section):
    """Rounds, client sampling and aggregation."""

    rounds: Positive = 5
    """rounds of broadcast, local fine-tuning, aggregation and distillation"""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """share of the clients drawn in each round"""
    participants: list[str] | None = None
    """restrict the federation to these client ids; []: no clients (server only); null: all"""
    aggregation: Annotated[str, one_of(AGGREGATIONS), Field(description=comment("aggregation"))] = "mean"
    upload: Literal["float32", "float16", "bfloat16"] = "float32"
    """dtype that a client's adapter travels in, rounded to the nearest: 16 bits halve the bytes up"""
    server_optimizer: ServerOptimizerConfig = ServerOptimizerConfig()
    min_clients: Positive = 1
    """a round with fewer updates fails; under secure aggregation secure_aggregation.threshold says this"""
    deadlines: DeadlinesConfig = DeadlinesConfig()
    max_update_norm: PositiveFloat = 1000.0
    """largest L2 norm of a client's change, where the server sees it; a larger change is refused"""
    secure_aggregation: SecureAggregationConfig = SecureAggregationConfig()
    privacy: PrivacyConfig | None = None
    """differential privacy: level (client or example), clip, noise_multiplier, delta, sampling_rate; null: none"""

    @property
    def weighted(self) -> bool:
        """Whether clients count by their number of examples."""
        return AGGREGATIONS[self.aggregation].weighted
