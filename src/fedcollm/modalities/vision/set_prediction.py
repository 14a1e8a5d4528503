"""Predictions that are a set: DETR's loss, and the matching of two detectors' queries.

A detector's rows are its queries, image by image: [B * Q, C + 1 + 4], the logits of C classes and of "no object", then
the box as center x, center y, width and height, from 0 to 1 in units of the image.

**Supervised loss** (Carion et al., arXiv 2005.12872, eq. 1 and 2, and A.2): every object is matched with one query by
the Hungarian method, with the costs 1 - p(class) (up to a constant), 5 times the L1 distance of the boxes and 2 times
1 - GIoU. The loss is the cross-entropy over all queries, in which "no object" has the weight 0.1, plus 5 times the L1
distance and 2 times 1 - GIoU over the matched ones, per object of the batch. The losses of intermediate layers, which
DETR adds, are left out. The computation is that of transformers.

**Distillation.** The paper's KL(p_f ‖ p_g) needs to know which query of g answers for which query of f. As in
DETRDistill (Chang et al., arXiv 2211.10156) and KD-DETR (Wang et al., arXiv 2211.08071), the KL compares the class
distributions, "no object" included, of queries that belong together, and the boxes are distilled beside it. Here the
queries of both models are matched with each other, by the Hungarian method with the cost

    TV(p_i, q_j) + max(o_i, o_j) (5 L1 + 2 (1 - GIoU)),

where TV is half the L1 distance of the class distributions and o = 1 - p("no object"). So boxes of queries that see
nothing are no matter, and models may have different numbers of queries: there are min(Q_g, Q_f) pairs per image.

**Which rows count.** Most queries see nothing, and a plain mean over pairs would be a mean over background. A pair has
the weight max(o_i, o_j) in the KL, at least `BACKGROUND` (the weight of "no object" in the supervised loss); the KL is
the weighted mean. A box counts as much as its teacher sees an object, o of the teacher, in the weighted mean of 5 times
the L1 distance.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fedcollm.errors import NonFiniteError
from fedcollm.modalities.base import UNLABELLED, Rows, Values

#: Weight of "no object" in the cross-entropy, and the smallest weight of a pair in the KL.
BACKGROUND = 0.1

#: Weights of the class, of the L1 distance of boxes, and of 1 - GIoU; in costs and in the loss.
CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 1.0, 5.0, 2.0


@dataclass(frozen=True)
class Objects:
    """The objects of an image.

    Attributes:
        classes: [N] int64.
        boxes: [N, 4] float32, center x, center y, width and height in units of the image.
    """

    classes: Tensor
    boxes: Tensor


def to_corners(boxes: Tensor) -> Tensor:
    """Return boxes [..., 4] as left, top, right and bottom, given center x, center y, width and height."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def pairwise_giou(one: Tensor, other: Tensor) -> Tensor:
    """Return the generalized IoU of every pair of boxes (Rezatofighi et al., arXiv 1902.09630).

    Args:
        one: [N, 4], left, top, right and bottom.
        other: [M, 4].

    Returns:
        [N, M], from -1 to 1.
    """
    return _transformers().generalized_box_iou(one, other)


def set_loss(outputs: Tensor, objects: Sequence[Objects | None]) -> Tensor:
    """Return DETR's loss over the labelled images of a batch, a scalar; without any, zero with a zero gradient.

    Args:
        outputs: [B * Q, C + 5].
        objects: those of each of the B images, None if unlabelled.
    """
    labelled = [number for number, known in enumerate(objects) if known is not None]
    if not labelled or not bool(outputs.detach().isfinite().all()):  # the training loop reports what is not finite
        return 0 * outputs.sum()
    kept = _by_image(outputs, len(objects))[labelled]  # [L, Q, C + 5]
    logits, boxes = kept[..., :-4], kept[..., -4:]
    known = [cast(Objects, objects[number]) for number in labelled]
    targets = [{"class_labels": one.classes.to(kept.device), "boxes": one.boxes.to(kept.device)} for one in known]
    matcher = _transformers().HungarianMatcher(CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT)
    losses = _transformers().ImageLoss(matcher, logits.shape[-1] - 1, BACKGROUND, ["labels", "boxes"]).to(kept.device)
    parts = losses({"logits": logits, "pred_boxes": boxes}, targets)
    return CLASS_WEIGHT * parts["loss_ce"] + L1_WEIGHT * parts["loss_bbox"] + GIOU_WEIGHT * parts["loss_giou"]


def check_outputs(outputs: Tensor, model: object) -> None:
    """Check that what a detector says can be scored.

    Args:
        outputs: [B * Q, C + 5].
        model: the detector, of which the message names the source.

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    if not bool(outputs.isfinite().all()):
        source = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
        raise NonFiniteError(
            f"scoring: the outputs of the detector {source} became NaN or infinite; the last good state is kept. Lower "
            "the learning rate, or look for broken weights."
        )


def pair_queries(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of the queries of two models that belong together, for one image.

    Args:
        one: [Q, C + 5].
        other: [R, C + 5].

    Returns:
        Two tensors [min(Q, R)] int64; the first one ascends.
    """
    from scipy import optimize  # pyright: ignore[reportMissingTypeStubs] # takes a while to import

    values = [rows.detach().double().cpu() for rows in (one, other)]
    if not all(bool(rows.isfinite().all()) for rows in values):  # the training loop reports it
        first = torch.arange(min(len(one), len(other)))
        return first, first
    (p, q), (a, b) = [rows[:, :-4].softmax(-1) for rows in values], [rows[:, -4:] for rows in values]
    apart = torch.cdist(p, q, p=1) / 2
    near = L1_WEIGHT * torch.cdist(a, b, p=1) + GIOU_WEIGHT * (1 - pairwise_giou(to_corners(a), to_corners(b)))
    sees = torch.maximum((1 - p[:, -1])[:, None], (1 - q[:, -1])[None])
    rows, columns = cast(Any, optimize).linear_sum_assignment((apart + sees * near).numpy())
    return torch.as_tensor(rows), torch.as_tensor(columns)


def matched_rows(slm: Tensor, llm: Tensor, images: int) -> Rows:
    """Return the matched queries of both models: their class logits, and their boxes times `L1_WEIGHT`.

    Args:
        slm: [B * Q, C + 5].
        llm: [B * R, C + 5].
        images: B.

    Returns:
        B * min(Q, R) rows. Their targets are all `UNLABELLED`: each model is matched with the objects by itself.
    """
    first, second = _by_image(slm, images), _by_image(llm, images)
    pairs = [pair_queries(one, other) for one, other in zip(first, second, strict=True)]
    slm_rows = torch.cat([rows[i.to(rows.device)] for rows, (i, _) in zip(first, pairs, strict=True)])
    llm_rows = torch.cat([rows[j.to(rows.device)] for rows, (_, j) in zip(second, pairs, strict=True)])
    slm_sees, llm_sees = objectness(slm_rows), objectness(llm_rows)
    values = Values(L1_WEIGHT * slm_rows[:, -4:], L1_WEIGHT * llm_rows[:, -4:], slm_sees, llm_sees)
    targets = torch.full((len(slm_rows),), UNLABELLED, device=slm.device)
    weights = torch.maximum(slm_sees, llm_sees).clamp(min=BACKGROUND)
    return Rows(slm_rows[:, :-4], llm_rows[:, :-4], targets, targets, weights, values)


def objectness(rows: Tensor) -> Tensor:
    """Return [P], the probability that each query sees an object, without a gradient, given [P, C + 5]."""
    return 1 - rows[:, :-4].detach().softmax(-1)[:, -1]


def _by_image(rows: Tensor, images: int) -> Tensor:
    """Return [B, Q, C + 5], given [B * Q, C + 5] and B."""
    return rows.reshape(images, -1, rows.shape[-1])


def _transformers() -> Any:
    """Return the module of transformers with the loss of DETR."""
    return importlib.import_module("transformers.loss.loss_for_object_detection")
