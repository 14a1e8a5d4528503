"""Distil a fresh SLM from the LLM after the last round, so that nothing of a client's update is left in it as it was.

What a hostile client plants in θ, such as an answer to a trigger, stays there: the mean carries it into every round. It
does not reach the LLM, which learns from the SLM only what that says about D_a, where the trigger does not occur. So
the SLM is set back to the adapter that the run began with, and is taught by the LLM alone, on all of D_a.
"""

from collections.abc import Sequence
from typing import Any

from fedcollm.config import ServerConfig
from fedcollm.messages import Adapter
from fedcollm.models.adapters import write_adapter
from fedcollm.training.distillation import ModelPair, distil


def distil_fresh(
    pair: ModelPair, public: Sequence[Any], initial: Adapter, settings: ServerConfig, seed: int
) -> dict[str, float]:
    """Set the SLM back, and tune it by distillation for `fresh_slm_epochs` with a learning rate that falls to zero.

    Args:
        pair: both models; the LLM is not changed.
        public: D_a.
        initial: the SLM's adapter at the beginning of the run.
        settings: the server's settings of distillation.
        seed: seed of the order of examples and of dropout.

    Returns:
        The losses, as in `distil`.

    Raises:
        NonFiniteError: a loss or a weight became NaN or infinite.
    """
    alone = settings.distillation.model_copy(update={"llm_weight": 0.0, "warmup_rounds": 0})
    changes = {"epochs": settings.fresh_slm_epochs, "schedule": "linear", "distillation": alone}
    write_adapter(pair.slm, initial)
    tuned = [] if pair.llm is None else [p for p in pair.llm.parameters() if p.requires_grad]
    try:
        for parameter in tuned:
            parameter.requires_grad_(False)
        return distil(pair, public, settings.model_copy(update=changes), seed)
    finally:
        for parameter in tuned:
            parameter.requires_grad_(True)
