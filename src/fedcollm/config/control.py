"""The `control` section of the configuration: what a run does instead of training."""

from typing import Annotated, Literal

from pydantic import Field

from fedcollm.config.base import Positive, PositiveFloat, Section, one_of
from fedcollm.config.choices import FEATURES, comment


class StatisticsConfig(Section):
    """The features whose second moments clients send in place of a tuned adapter. All parties must use the same."""

    features: Annotated[str, one_of(FEATURES), Field(description=comment("features"))]
    columns: Positive = 2048
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

    ridge: PositiveFloat = 0.3
    """ridge λ, added to the diagonal of XᵀX, which is a sum over examples that weigh 1 each"""


class PseudoLabelConfig(ControlConfig):
    """Labels for the unlabelled part of D_a, from a ridge regression on sums over the clients, sent once."""

    features: Annotated[str, one_of(FEATURES), Field(description=comment("features"))] = "ngrams"
    labels: Literal["likeliest", "drawn"] = "likeliest"
    """likeliest: the likeliest label; drawn: in every round, a label drawn from the calibrated distribution"""
    with_models: bool = True
    """from round 2 on, average the regression's probabilities with those of the LLM and the SLM"""
    always: bool = False
    """true: label even if the regression is no better on the labelled part of D_a than the untrained models"""
