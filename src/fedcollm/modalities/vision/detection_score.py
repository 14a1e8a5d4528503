"""Scores of detection: AP of each image, and COCO's mAP of a whole set.

`ap50`, the main metric, is a mean over images, so that the scores of several parts add up exactly, and two methods can
be compared image by image (paired bootstrap). An image's AP is the area under its own precision-recall curve, with the
detections of all classes in one ranking: a detection is right if a not yet found object of its class overlaps it with
an IoU of at least 0.5. False detections count against it whatever their class is. In an image without objects it is 1
if no detection has a confidence of 0.5 or more, else 0.

`map` (mean over IoU thresholds 0.50 to 0.95) and `map50` are those of COCO (Lin et al., arXiv 1405.0312), which rank
the detections of all images together, and are no sums over images. They are computed once per scored set by
faster-coco-eval, and kept as mAP times the number of images with objects: adding the scores of several parts, such as
those of clients with test sets of their own, gives the mean of the parts' mAP, weighted by number of images with
objects. A part without objects has no mAP, and does not change that of the others; the mAP of nothing else is NaN. The
mean is not the mAP of all parts together, for which one party would need all detections.
"""

import contextlib
import importlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedcollm.errors import NonFiniteError, UserError
from fedcollm.messages import Score
from fedcollm.modalities.vision.boxes import NOTHING, Box, DetectionExample

#: IoU from which on a detection is right.
OVERLAP = 0.5

#: Confidence from which on a detection is shown, and counts in an image without objects.
SHOWN = 0.5

#: The recalls at which COCO reads the precision: 0, 0.01, ..., 1.
_RECALLS = np.linspace(0.0, 1.0, 101)


class Detection(NamedTuple):
    """A box that a detector found, with its class, in pixels of the image, and how sure it is of it, from 0 to 1."""

    box: Box
    confidence: float


def detection_score(examples: Sequence[DetectionExample], found: Sequence[Sequence[Detection]]) -> Score:
    """Return `ap50` of labelled images as a sum over images, and `map50` and `map` as sums over those with objects.

    Args:
        examples: the images with their objects.
        found: the detections of each image.

    Raises:
        UserError: faster-coco-eval is not installed.
        NonFiniteError: a detection has a side or a confidence that is NaN or infinite.
    """
    if not all(
        map(math.isfinite, (side for one in found for seen in one for side in (*seen.box[:4], seen.confidence)))
    ):
        raise NonFiniteError("scoring: a detection has a side or a confidence that is NaN or infinite.")
    outcomes = {e.id: image_ap(e.boxes or (), one) for e, one in zip(examples, found, strict=True)}
    known = sum(bool(e.boxes) for e in examples)
    overall = coco_map(examples, found)
    sums = {"ap50": sum(outcomes.values()), **{name: value * known for name, value in overall.items()}}
    confusion = Counter(pair for e, one in zip(examples, found, strict=True) for pair in _confused(e.boxes or (), one))
    return Score(sums, len(examples), confusion, outcomes, dict.fromkeys(overall, known))


def iou(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes, from 0 to 1.

    >>> iou(Box(0, 0, 2, 2, "a"), Box(1, 0, 3, 2, "b"))
    0.3333333333333333
    """
    left, top = max(one.left, other.left), max(one.top, other.top)
    right, bottom = min(one.right, other.right), min(one.bottom, other.bottom)
    shared = Box(left, top, right, bottom, "").area
    union = one.area + other.area - shared
    return shared / union if union else 0.0


def image_ap(objects: Sequence[Box], found: Sequence[Detection]) -> float:
    """Return the average precision of one image, interpolated at 101 recalls as COCO does.

    Args:
        objects: the true boxes.
        found: the detections, in any order.
    """
    if not objects:
        return float(all(one.confidence < SHOWN for one in found))
    ranked = sorted(found, key=lambda one: -one.confidence)
    right = np.array([place is not None for place in _assigned(objects, ranked)], dtype=float)
    if not len(right):
        return 0.0
    hits = right.cumsum()
    recall, precision = hits / len(objects), hits / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # the largest precision at this recall or a higher one
    places = np.searchsorted(recall, _RECALLS - 1e-9)
    return float(np.where(places < len(best), best[np.minimum(places, len(best) - 1)], 0.0).mean())


def coco_map(examples: Sequence[DetectionExample], found: Sequence[Sequence[Detection]]) -> Mapping[str, float]:
    """Return COCO's `map50` and `map` of a set of images; 0 if it has no objects.

    Raises:
        UserError: faster-coco-eval is not installed.
    """
    coco = _package()
    numbers = {name: number for number, name in enumerate(examples[0].classes, start=1)} if examples else {}
    truth: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for image, (example, detections) in enumerate(zip(examples, found, strict=True), start=1):
        for box in example.boxes or ():
            values = _entry(box, image, numbers)
            truth.append({**values, "id": len(truth) + 1, "area": box.area, "iscrowd": 0})
        answers += [{**_entry(one.box, image, numbers), "score": one.confidence} for one in detections]
    if not truth or not answers:
        return {"map50": 0.0, "map": 0.0}
    images = [{"id": n, "width": e.width, "height": e.height} for n, e in enumerate(examples, start=1)]
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints its table
        known = coco.COCO({"images": images, "annotations": truth, "categories": categories})
        one = coco.COCOeval_faster(known, known.loadRes(answers), "bbox")
        one.evaluate()
        one.accumulate()
        one.summarize()
    return {"map50": max(float(one.stats[1]), 0.0), "map": max(float(one.stats[0]), 0.0)}


def _package() -> Any:
    try:
        return importlib.import_module("faster_coco_eval")
    except ImportError as error:
        raise UserError(
            "detection needs the package faster-coco-eval. Run: pip install 'fedcollm[detection]'"
        ) from error


def _entry(box: Box, image: int, numbers: Mapping[str, int]) -> dict[str, Any]:
    place = [box.left, box.top, box.right - box.left, box.bottom - box.top]
    return {"image_id": image, "category_id": numbers[box.label], "bbox": place}


def _assigned(objects: Sequence[Box], ranked: Sequence[Detection], same_class: bool = True) -> list[int | None]:
    """Return for each detection, the surest first, the position of the object that it finds, or None."""
    free, places = set(range(len(objects))), list[int | None]()
    for one in ranked:
        near = {
            i: iou(objects[i], one.box) for i in sorted(free) if not same_class or objects[i].label == one.box.label
        }
        place = max(near, key=lambda i: near[i], default=None)
        place = None if place is None or near[place] < OVERLAP else place
        free.discard(-1 if place is None else place)
        places.append(place)
    return places


def _confused(objects: Sequence[Box], found: Sequence[Detection]) -> list[tuple[str, str]]:
    """Return (true class, detected class) of all objects and of all detections that are shown.

    An object that was not found, or a detection of no object, has `(nothing)` as the other class.
    """
    ranked = sorted((one for one in found if one.confidence >= SHOWN), key=lambda one: -one.confidence)
    places = _assigned(objects, ranked, same_class=False)
    pairs = [
        (NOTHING if place is None else objects[place].label, one.box.label)
        for place, one in zip(places, ranked, strict=True)
    ]
    missed = set(range(len(objects))) - {place for place in places if place is not None}
    return pairs + [(objects[i].label, NOTHING) for i in sorted(missed)]
