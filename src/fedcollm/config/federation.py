"""The `federation` section of the configuration: rounds, aggregation, secure aggregation, privacy, deadlines."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedcollm.config.base import NonNegative, Positive, PositiveFloat, Section, Share, Weight, one_of
from fedcollm.config.choices import AGGREGATIONS, SERVER_OPTIMIZERS, comment
from fedcollm.config.yaml_text import as_switch


def asked_clients(count: int, fraction: float) -> int:
    """Return how many of `count` clients a round samples: the given fraction, but at least one.

    >>> [asked_clients(4, fraction) for fraction in (1.0, 0.5, 0.01)]
    [4, 2, 1]
    """
    return min(count, max(1, round(fraction * count)))


class SecureAggregationConfig(Section):
    """Secure aggregation. All parties must use the same values. A plain `true` or `false` sets `enabled`."""

    enabled: bool = False
    """true: the server learns only the sum of the clients' updates, never a single client's update"""
    threshold: Positive | None = None
    """number of clients needed to open a sum, more than 2/3 of a round's clients; null: the smallest such number"""
    value_range: PositiveFloat | None = None
    """largest change of a parameter; a larger one is an error, with few bits clipped; null: 1, or what few bits need"""
    max_weight: Positive = 4096
    """largest number of examples that a client may have"""
    bits: Literal[3, 4, 5, 6, 8, 10, 16, 32] = 32
    """most bits per value; with fewer than 32, values are rounded at random: set max_weight to the largest client's"""
    simulate_quantization: bool = False
    """without secure aggregation: round updates in the same way, to get bit-identical results at less cost"""

    @property
    def largest_value(self) -> float:
        """The largest number that statistics or, with 32 bits, changes may have."""
        return 1.0 if self.value_range is None else self.value_range

    @property
    def excludes_statistics(self) -> bool:
        """Whether the range of whole words is too small for statistics, which reach 1 and never have few bits."""
        return (self.enabled or self.simulate_quantization) and self.bits == 32 and self.largest_value < 1

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"enabled": value} if isinstance(value := as_switch(value), bool) else value


class DeadlinesConfig(Section):
    """How long the server of a deployment waits, in seconds. A straggler that takes longer is lost for the round."""

    training: PositiveFloat = 3600.0
    """seconds that a deployed server waits for a client's local training; after that, the client misses the round"""
    phase: PositiveFloat = 120.0
    """seconds that it waits for a client's answer in each later phase of secure aggregation"""
    absence: PositiveFloat = 60.0
    """seconds that it waits for a disconnected client to reconnect"""


class PrivacyConfig(Section):
    """Differential privacy: what an update must hide, and how well. All parties must use the same values."""

    level: Literal["client", "example"]
    """what is protected: client: a client's whole contribution; example: each single training example"""
    clip: PositiveFloat
    """clipping norm: largest L2 norm of a client's update (level client) or a per-example gradient (level example)"""
    noise_multiplier: PositiveFloat
    """standard deviation of the noise in a sum, as a multiple of clip; more noise gives a smaller ε"""
    delta: Annotated[float, Field(gt=0, lt=1)]
    """δ, the probability that the guarantee may fail; choose it well below 1 / number of clients or examples"""
    sampling_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """level example only: probability q that an example is in a step's batch; a round takes epochs / q steps"""


class ServerOptimizerConfig(Section):
    """The server optimizer, whose pseudo-gradient is the clients' mean update (Reddi et al., arXiv 2003.00295)."""

    kind: Annotated[str, one_of(SERVER_OPTIMIZERS), Field(description=comment("kind"))] = "average"
    learning_rate: PositiveFloat = 1.0
    """server learning rate η, which multiplies the mean update; for fedadam, try 0.01"""
    momentum: Share = 0.9
    """momentum β of fedavgm, β₁ of fedadam"""
    decay: Share = 0.99
    """β₂ of fedadam, the decay of the second moment"""
    tau: PositiveFloat = 1.0e-3
    """τ of fedadam, added to the square root of the second moment (PyTorch calls it eps)"""

    @property
    def is_plain(self) -> bool:
        """Whether the mean update is applied unchanged, as in FedAvg."""
        return self.kind == "average" and self.learning_rate == 1


class FederationConfig(Section):
    """Rounds, client sampling and aggregation."""

    rounds: Positive = 5
    """rounds of broadcast, local fine-tuning, aggregation and distillation"""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """fraction of the clients that is sampled for each round"""
    participants: list[str] | None = None
    """ids of the clients that take part; []: no clients, the server works alone; null: all clients"""
    aggregation: Annotated[str, one_of(AGGREGATIONS), Field(description=comment("aggregation"))] = "mean"
    faulty: NonNegative = 1
    """f, the clients of a round that may be faulty or hostile, for the rules of aggregation that bear some"""
    clip_to_median: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """scale longer changes down to this multiple of the round's median L2 norm, such as 1.5; null: no such bound"""
    clip_norm: PositiveFloat | None = None
    """L2 norm to which clients scale longer changes down, and the server too if it sees them; null: no such bound"""
    max_drop: Weight | None = None
    """reject a round whose mean lowers the SLM's score on the labelled public examples by more, as 0.05; null: never"""
    upload: Literal["float32", "float16", "bfloat16", "int8", "int4", "int3"] = "float32"
    """what clients send of their adapters; int8 to int3: the change in 8 to 3 bits per value, rounded at random"""
    download: Literal["float32", "bfloat16", "int8", "int4", "int3"] = "float32"
    """what the server sends of the adapter; int8 to int3: how it differs from the untrained one, in so many bits"""
    server_optimizer: ServerOptimizerConfig = ServerOptimizerConfig()
    min_clients: Positive = 1
    """quorum: a round with fewer updates fails; with secure aggregation, secure_aggregation.threshold is the quorum"""
    deadlines: DeadlinesConfig = DeadlinesConfig()
    max_update_norm: PositiveFloat = 1000.0
    """largest L2 norm of a client's update; a client that exceeds it sends no change, and the server rejects it"""
    max_adapter_value: PositiveFloat | None = 1000.0
    """largest absolute value in a global adapter that a client trains; null: no limit"""
    max_adapter_norm: PositiveFloat | None = 10_000.0
    """largest L2 norm of one tensor of a global adapter that a client trains; null: no limit"""
    max_loss: PositiveFloat | None = 10_000.0
    """largest loss of the global adapter on a client's own data for which the client trains; null: no limit"""
    secure_aggregation: SecureAggregationConfig = SecureAggregationConfig()
    profile: bool = False
    """true: clients send once how their labels, lengths and contents are distributed, for profile.json and the audit"""
    privacy: PrivacyConfig | None = None
    """differential privacy: level (client or example), clip, noise_multiplier, delta, sampling_rate; null: none"""

    @property
    def warning(self) -> str | None:
        """What a reader must know of secure aggregation without differential privacy; None where it does not apply."""
        if not self.secure_aggregation.enabled or self.privacy is not None or self.participants == []:
            return None
        return (
            "secure aggregation without federation.privacy hides who contributed what to a sum, not what the sum says: "
            "a dishonest server can choose a global adapter that only one client's data change"
        )

    @property
    def longest_update(self) -> float:
        """The largest L2 norm of an honest client's change."""
        return min(self.max_update_norm, self.clip_norm or self.max_update_norm)

    @property
    def least_updates(self) -> int:
        """The smallest number of updates among which the aggregation rule bears `faulty` clients."""
        return AGGREGATIONS[self.aggregation].least(self.faulty)

    @property
    def weighted(self) -> bool:
        """Whether clients are weighted by their number of examples."""
        return AGGREGATIONS[self.aggregation].weighted
