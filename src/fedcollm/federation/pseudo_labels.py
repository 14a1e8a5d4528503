"""Label the unlabelled part of D_a with what the clients know: self-training with a teacher made of secure sums.

Before round 1, the clients send the second moments of their examples once (`statistics.py`), which give the solution of
ridge regression over all private examples: as in analytic federated learning (AFL, Zhuang et al., arXiv 2405.16240) and
Fed3R (Fanì et al., arXiv 2402.01693). The teacher scores the choices of each unlabelled public example, which gets the
likeliest one as its label; or, in every round, one that is drawn from the calibrated distribution, so that the expected
loss is the cross-entropy with the whole distribution. From the second round on, both models have a say in the labels
too. They are then trained on these labels like on any others.

The labelled part of D_a, which the first solution does not use, tells how good the teacher is. It teaches only if it is
better there than both models are before any training.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedcollm.config import PseudoLabelConfig
from fedcollm.errors import UserError
from fedcollm.federation import statistics
from fedcollm.messages import Adapter
from fedcollm.modalities.base import Modality

#: Names of the teacher's tensors: W, [d, C]; the scale of its scores, and its accuracy on the labelled part of D_a.
WEIGHTS, SCALE, ACCURACY = "weights", "scale", "accuracy"

#: Scales of the scores that are tried; the likeliest labels are the same with all of them.
_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def build_teacher(
    modality: Modality,
    slm: nn.Module,
    labelled: Sequence[Any],
    clients: tuple[Adapter, int],
    settings: PseudoLabelConfig,
) -> Adapter:
    """Return a teacher, as tensors by name.

    Args:
        modality: makes regression rows of examples.
        slm: the SLM, for the features `slm`.
        labelled: the labelled part of D_a; without any, nothing tells how good the teacher is.
        clients: the mean of the clients' statistics, and their number of examples.
        settings: the features and the ridge.
    """
    alone = statistics.solve_together([clients], settings.ridge)
    if not labelled:
        return _named(alone, 1.0, 1.0)
    scores, right = _scores(modality, slm, labelled, alone, settings)
    accuracy = sum(int(s.argmax()) == r for s, r in zip(scores, right, strict=True)) / len(right)
    scale = min(_SCALES, key=lambda factor: _loss(scores, right, factor))
    own = statistics.moments(modality, labelled, settings, slm)
    return _named(statistics.solve_together([clients, (own, len(labelled))], settings.ridge), scale, accuracy)


def verdict(accuracy: float, untrained: float | None) -> tuple[bool, str]:
    """Return whether the regression labels the unlabelled examples, and a sentence that says so.

    Args:
        accuracy: the share of labelled D_a that the regression on the clients' sums labels correctly.
        untrained: that of the better untrained model; None if it labels in any case.

    >>> verdict(0.82, 0.72)[1]
    'pseudo-labels: the regression labels 82.0 % of labelled D_a correctly, the better untrained model 72.0 %: used'
    """
    used = untrained is None or accuracy > untrained
    beside = "" if untrained is None else f", the better untrained model {100 * untrained:.1f} %"
    said = f"pseudo-labels: the regression labels {100 * accuracy:.1f} % of labelled D_a correctly{beside}"
    return used, f"{said}: {'used' if used else 'not used'}"


def teach(
    modality: Modality, slm: nn.Module, unlabelled: Sequence[Any], teacher: Adapter, settings: PseudoLabelConfig
) -> list[Tensor]:
    """Return [C_i] probabilities of each example's choices, as the teacher sees them.

    Args:
        modality: makes regression rows of examples.
        slm: the SLM, for the features `slm`.
        unlabelled: any number of examples.
        teacher: from `build_teacher`.
        settings: the features.
    """
    scores, _ = _scores(modality, slm, unlabelled, teacher[WEIGHTS], settings) if unlabelled else ([], [])
    return [torch.softmax(float(teacher[SCALE]) * one, 0) for one in scores]


def with_pseudo_labels(
    public: Sequence[Any], opinions: Sequence[Sequence[Tensor]], settings: PseudoLabelConfig, seed: int
) -> list[Any]:
    """Return D_a with a label for every unlabelled example.

    Args:
        public: D_a.
        opinions: for each teacher, [C_i] probabilities of each unlabelled example's choices; their mean counts, as in
            tri-training (Zhou and Li 2005), where what most of several learners believe labels an example.
        settings: whether labels are drawn.
        seed: seed of the draw; another round has another one.
    """
    draw, labelled = random.Random(seed), list[Any]()
    beliefs = iter([torch.stack(one).double().mean(0) for one in zip(*opinions, strict=True)])
    for example in public:
        if example.label is not None:
            labelled.append(example)
            continue
        belief: Any = next(beliefs)
        drawn = draw.choices(range(len(belief)), belief.tolist())[0] if settings.labels == "drawn" else None
        labelled.append(_labelled(example, int(belief.argmax()) if drawn is None else drawn))
    return labelled


def _labelled(example: Any, answer: int) -> Any:
    if not hasattr(example, "with_answer"):
        raise UserError(
            f"server.pseudo_labels: {type(example).__name__} has no method with_answer(index), which returns the "
            "example with that label. Define it, or set server.pseudo_labels: null."
        )
    return example.with_answer(answer)


def _scores(
    modality: Modality, slm: nn.Module, examples: Sequence[Any], weights: Tensor, settings: PseudoLabelConfig
) -> tuple[list[Tensor], list[int]]:
    """Return [C_i] scores of each example's choices, and the index of the right one, which has the largest target."""
    scores: list[Tensor] = []
    right: list[int] = []
    for _, part in statistics.evidence(modality, examples, settings, slm):
        scores += statistics.scores(weights, part)
        right += [int(targets.argmax()) for targets in part.by_example(part.targets)]
    return scores, right


def _loss(scores: Sequence[Tensor], right: Sequence[int], scale: float) -> float:
    """Return the mean cross-entropy of softmax(scale · scores): temperature scaling (Guo et al., arXiv 1706.04599)."""
    losses = [-torch.log_softmax(scale * s.double(), 0)[r] for s, r in zip(scores, right, strict=True)]
    return float(torch.stack(losses).mean())


def _named(weights: Tensor, scale: float, accuracy: float) -> Adapter:
    return {WEIGHTS: weights, SCALE: torch.tensor(scale), ACCURACY: torch.tensor(accuracy)}
