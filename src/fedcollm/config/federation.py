"""Sections of a run's configuration: rounds, aggregation, secure aggregation, privacy and deadlines."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedcollm.config.sections import Positive, PositiveFloat, Section


def asked_clients(count: int, fraction: float) -> int:
    """How many of `count` clients a round asks.

    >>> [asked_clients(4, fraction) for fraction in (1.0, 0.5, 0.01)]
    [4, 2, 1]
    """
    return min(count, max(1, round(fraction * count)))


class SecureAggregationConfig(Section):
    """Secure aggregation, with the numbers that all parties must agree on. `true` or `false` alone sets `enabled`."""

    enabled: bool = False
    """true: the server learns only the sum of the clients' changes, and nothing of a single client"""
    threshold: Positive | None = None
    """clients needed to open a sum, more than 2/3 of those asked in a round; null: the smallest such number"""
    value_range: PositiveFloat = 1.0
    """largest change of a parameter in a round; a larger one is an error (privacy at level client has its own range)"""
    max_weight: Positive = 4096
    """largest number of examples of a client"""
    simulate_quantization: bool = False
    """without secure aggregation: round as it does, so that a run gives bit for bit what it gives with it"""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"enabled": value} if isinstance(value, bool) else value


class DeadlinesConfig(Section):
    """How long the server of a deployment waits, in seconds; a client that is later is lost for the round."""

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

    @property
    def objections(self) -> list[str]:
        """What is wrong with the section by itself."""
        if self.level == "client" and self.sampling_rate is not None:
            return [f"sampling_rate {self.sampling_rate:g} means nothing at level client: leave it out"]
        if self.level == "example" and self.sampling_rate is None:
            return ["level example needs sampling_rate, such as batch_size / private_size"]
        return []


class ServerOptimizerConfig(Section):
    """What the server does with the clients' mean change, its pseudo-gradient (Reddi et al., arXiv 2003.00295)."""

    kind: Literal["average", "fedavgm", "fedadam"] = "average"
    """average: take it as it is (FedAvg); fedavgm: with momentum; fedadam: as Adam would"""
    learning_rate: PositiveFloat = 1.0
    """server learning rate η; fedadam wants about 0.01"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """β of fedavgm, β₁ of fedadam"""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """β₂ of fedadam"""
    tau: PositiveFloat = 1.0e-3
    """τ of fedadam, its adaptivity: added to the root of the second moment"""


class FederationConfig(Section):
    """Rounds, sampling and aggregation."""

    rounds: Positive = 5
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """share of the clients drawn in each round"""
    participants: list[str] | None = None
    """restrict the federation to these client ids; []: no clients (server only); null: all"""
    aggregation: Literal["mean", "uniform", "product"] = "mean"
    """mean: weighted by number of examples; uniform: the paper's 1/K; product: weighted, of LoRA's products B A"""
    upload: Literal["float32", "float16", "bfloat16"] = "float32"
    """dtype that a client's adapter travels in, rounded to the nearest: 16 bits halve the bytes up"""
    server_optimizer: ServerOptimizerConfig = ServerOptimizerConfig()
    min_clients: Positive = 1
    """a round with fewer updates fails; under secure aggregation masking.threshold says this"""
    deadlines: DeadlinesConfig = DeadlinesConfig()
    max_update_norm: PositiveFloat = 1000.0
    """bound of the L2 norm of a client's change, where the server sees it; a larger change is refused"""
    secure_aggregation: SecureAggregationConfig = SecureAggregationConfig()
    privacy: PrivacyConfig | None = None
    """differential privacy: level (client or example), clip, noise_multiplier, delta, sampling_rate; null: none"""

    @property
    def objections(self) -> list[str]:
        """What is wrong with the section by itself."""
        reasons = []
        if self.upload != "float32":
            reasons += self.needs_single_updates("federation.upload", self.upload, "float32")
        if self.aggregation == "product":
            reasons += self.needs_single_updates("federation.aggregation", "product", "mean or uniform")
        if self.aggregation == "product" and (
            self.server_optimizer.kind != "average" or self.server_optimizer.learning_rate != 1
        ):
            reasons.append(
                f"federation.aggregation product with federation.server_optimizer {self.server_optimizer.kind}, learning_rate {self.server_optimizer.learning_rate:g}: a "
                "step moves A and B themselves, which the product's mean makes anew in every round. Set "
                "federation.server_optimizer.kind: average and federation.server_optimizer.learning_rate: 1, or federation.aggregation: mean"
            )
        return reasons

    def needs_single_updates(self, key: str, value: object, instead: str) -> list[str]:
        """Why a key that needs single updates, or gives them another form, can't be had with what hides them.

        Args:
            key: with its section.
            value: that it has.
            instead: value that is always allowed.
        """
        why = {
            "secure_aggregation": (
                self.secure_aggregation.enabled,
                "the server sees a sum only, of 32-bit words, as many at each client",
            ),
            "secure_aggregation.simulate_quantization": (
                self.secure_aggregation.simulate_quantization,
                "it does as secure aggregation, whose sum is of 32-bit words",
            ),
            "privacy": (self.privacy is not None, "its noise was worked out for a whole update in 32 bits"),
        }
        hiding = [(name, reason) for name, (is_on, reason) in why.items() if is_on][:1]
        return [f"{key} {value} with federation.{name}: {reason}. Set {key}: {instead}" for name, reason in hiding]
