"""The `control` section of the configuration: what a run does instead of training."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedcollm.config.base import Section, one_of
from fedcollm.config.choices import FEATURES, TEACHERS, comment

#: Largest number of columns: d²/2 numbers in float32 are then 512 MiB, and solving takes 10 GiB.
MOST_COLUMNS = 16384

#: Bounds of the ridge. Below, the rounding of statistics decides, and not the examples; above, nothing is learned.
SMALLEST_RIDGE, LARGEST_RIDGE = 1e-4, 1e6


class StatisticsConfig(Section):
    """The features whose second moments clients send in place of a tuned adapter. All parties must use the same."""

    features: Annotated[str, one_of(FEATURES), Field(description=comment("features"))]
    columns: Annotated[int, Field(ge=1, le=MOST_COLUMNS)] = 2048
    """n-grams of text only: number of columns d that they are hashed to; a client sends about d²/2 numbers"""

    @property
    def needs_columns(self) -> bool:
        """Whether the features of text are hashed n-grams, or contain them."""
        return self.features in ("ngrams", "ngrams_slm")

    @property
    def needs_model(self) -> bool:
        """Whether the features are those of the SLM, or contain them."""
        return self.features in ("slm", "ngrams_slm")


class ControlConfig(StatisticsConfig):
    """A control without federated co-tuning: ridge regression, solved once from sums over the clients."""

    ridge: Annotated[float, Field(ge=SMALLEST_RIDGE, le=LARGEST_RIDGE)] = 0.3
    """ridge λ, added to the diagonal of XᵀX, which is a sum over examples that weigh 1 each"""


class PseudoLabelConfig(ControlConfig):
    """Labels for the unlabelled part of D_a: by ridge regression on sums that clients send once, and by both models."""

    features: Annotated[str, one_of(FEATURES), Field(description=comment("features"))] = "ngrams"
    labels: Literal["likeliest", "drawn"] = "likeliest"
    """likeliest: the likeliest label; drawn: in every round, a label drawn from the calibrated distribution"""
    teachers: Annotated[
        list[Annotated[str, one_of(TEACHERS)]],
        Field(
            default_factory=lambda: ["regression", "llm", "slm"],
            min_length=1,
            description="whose mean opinion labels an example. " + comment("teachers"),
        ),
    ]
    always: bool = False
    """true: label even if the regression is no better on the labelled part of D_a than the untrained models"""

    @field_validator("teachers")
    @classmethod
    def _each_once(cls, teachers: list[str]) -> list[str]:
        if repeated := [name for name in teachers if teachers.count(name) > 1]:
            raise ValueError(f"{repeated[0]!r} stands there twice; name each teacher once")
        return teachers

    @property
    def asks_clients(self) -> bool:
        """Whether a teacher needs the clients' statistics."""
        return "regression" in self.teachers


#: Bounds of the number of buckets of a profile's sketch, which is a power of two.
FEWEST_BUCKETS, MOST_BUCKETS = 64, 2**16


@dataclass(frozen=True)
class AskedStatistics:
    """What clients send once of their examples, before the first round; nothing if it is false.

    Attributes:
        ridge: the features whose second moments they send; None for no such sums.
        buckets: number of buckets of the sketch in the profile of their data; 0 for no profile.
        literals: what the task's template puts into every text, which the sketch leaves out.
    """

    ridge: StatisticsConfig | None = None
    buckets: int = 0
    literals: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return whether clients send anything."""
        return self.ridge is not None or self.buckets > 0


def buckets_for(examples: int) -> int:
    """Return the number of buckets for the sketch of so many examples: the next power of two.

    >>> [buckets_for(examples) for examples in (10, 640, 1024, 10**9)]
    [64, 1024, 1024, 65536]
    """
    return min(max(1 << (examples - 1).bit_length(), FEWEST_BUCKETS), MOST_BUCKETS)
