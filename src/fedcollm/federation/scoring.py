"""How a client scores its SLM, so that a score that can't be computed does not show."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from fedcollm.errors import UserError
from fedcollm.federation.aggregation.validation import odd_score
from fedcollm.federation.operator import Operator
from fedcollm.messages import Score
from fedcollm.modalities.base import Modality
from fedcollm.training.fine_tuning import evaluate


def score_quietly(
    modality: Modality, model: nn.Module, examples: Sequence[Any], batch_size: int, where: str, operator: Operator
) -> Score:
    """Return a model's score as a client sends it: without a confusion table and outcomes, and always one.

    If the score can't be computed or no server accepts it, its sums are zero, and only the operator learns why.

    Args:
        modality: scores batches.
        model: the model.
        examples: at least one example.
        batch_size: number of examples per batch.
        where: name of the training, for progress and messages.
        operator: is told what went wrong.
    """
    try:
        score = evaluate(modality, model, examples, batch_size, f"{where}, scoring")
        if reason := odd_score(score):
            raise UserError(f"{reason} ({dict(score.sums)} of {score.count} examples)")
        return Score(score.sums, score.count, counts=score.counts)
    except Exception as error:  # anything here may depend on the data
        operator.tell(f"{where}, scoring", error)
        like = _like(modality, model, examples)
        return Score(dict.fromkeys(like.sums, 0.0), len(examples), counts=dict.fromkeys(like.counts, len(examples)))


def _like(modality: Modality, model: nn.Module, examples: Sequence[Any]) -> Score:
    """Return a score with the names that one has, from the first example that can be scored."""
    for example in examples:
        try:
            score = evaluate(modality, model, [example], 1)
            if score.sums:
                return score
        except Exception:
            continue
    return Score({modality.metric: math.nan}, 0)
