"""Detection of objects in images: a row of logits and a box per query of a detector."""

import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, cast

import torch
from PIL import Image
from torch import Tensor, nn

from fedcollm.messages import Score
from fedcollm.modalities.base import UNLABELLED, Modality, Rows
from fedcollm.modalities.exhibits import Answer, Exhibit, Region
from fedcollm.modalities.jsonl import read_jsonl
from fedcollm.modalities.pictures import picture
from fedcollm.modalities.predictions import Found, Prediction
from fedcollm.modalities.vision.boxes import Box, DetectionExample, from_row, told
from fedcollm.modalities.vision.detection_pixels import DetectionPixels
from fedcollm.modalities.vision.detection_score import SHOWN, Detection, detection_score
from fedcollm.modalities.vision.detectors import DetectorModels
from fedcollm.modalities.vision.kept_pixels import KeptPixels
from fedcollm.modalities.vision.set_prediction import Objects, check_outputs, matched_rows, set_loss, to_corners

#: Images per forward pass when a whole set is scored.
_AT_ONCE = 16


@dataclass(frozen=True)
class DetectionBatch:
    """B images as pixels [B, 3, height, width], and their objects; None where unlabelled."""

    pixels: Tensor
    objects: tuple[Objects | None, ...]


class _DetectionModality(DetectorModels, Modality):
    """What detection with one preprocessing and with two have in common: everything that needs no pixels."""

    metric: str = "ap50"

    def labelled(self, batch: Any) -> int:
        """Return the number of labelled images."""
        return sum(known is not None for known in _objects(batch))

    def targets(self, batch: Any) -> Tensor:
        """Return [B] int64, all `UNLABELLED`: which query answers for which object depends on the model."""
        return torch.full((len(_objects(batch)),), UNLABELLED)

    def rows(self, batch: Any) -> int:
        """Return the number of images, to which the number of matched rows is proportional."""
        return len(_objects(batch))

    def align(self, batch: Any, slm_logits: Tensor, llm_logits: Tensor) -> Rows:
        """Return the queries of both models matched image by image; see `set_prediction.matched_rows`."""
        return matched_rows(slm_logits, llm_logits, len(_objects(batch)))

    def exhibit(self, example: DetectionExample) -> Exhibit:
        """Return the image and its boxes."""
        boxes = example.boxes or ()
        regions = tuple(_region(box, example) for box in boxes)
        return Exhibit(example.id, truth=_counted(boxes), picture=picture(example.image()), regions=regions)

    def facts(self) -> dict[str, Any]:
        """Return the names of the classes."""
        return {"classes": list(self.classes)}

    def write_examples(self, examples: Sequence[DetectionExample]) -> str:
        """Return examples as JSON lines that contain the files."""
        return "".join(json.dumps(example.to_row()) + "\n" for example in examples)

    def read_examples(self, path: Path) -> list[Any]:
        """Return the labelled examples that `write_examples` wrote.

        Raises:
            UserError: the file can't be read, or a line is not an example of these classes.
        """
        return [from_row(row, f"{path}, line {number}", self.classes) for number, row in read_jsonl(path)]


class DetectionTask(_DetectionModality):
    """The modality of detection, for one model or two that read the same pixels.

    A row is a query, [C + 1 + 4]: the logits of C classes and of "no object", then center x, center y, width and height
    of its box, from 0 to 1. Loss and matching are those of `set_prediction`, the score is that of `detection_score`.

    Args:
        name: name of the task, for reports.
        classes: names of the classes, in the order of the columns of the logits.
        preprocessing: makes the model's pixels.
    """

    scores_together: ClassVar[bool] = True

    def __init__(self, name: str, classes: Sequence[str], preprocessing: DetectionPixels):
        super().__init__(classes)
        self.name = name
        self.preprocessing = preprocessing
        self.options: Mapping[str, Any] = {"classes": list(self.classes), "pixels": preprocessing.to_wire()}
        self.kept: KeptPixels = KeptPixels(preprocessing, (preprocessing.height, preprocessing.width))
        self._boxes: dict[str, Mapping[str, int]] = {}
        self._numbers: dict[str, int] = {}
        self._queries: int | None = None
        self._scored_nothing = False

    def pixels(self, example: DetectionExample, image: Callable[[], Image.Image]) -> Tensor:
        """Return the pixels of an example, [3, height, width], from memory if they are kept there.

        Args:
            example: the example.
            image: returns its image.
        """
        if example.changed:
            self._boxes[example.content] = example.changed
        if example.boxes is not None:
            self._numbers[example.content] = len(example.boxes)
        return self.kept.of(example, image)

    def collate(self, examples: Sequence[DetectionExample]) -> DetectionBatch:
        """Return a batch of images stacked along a new first dimension, and their objects."""
        pixels = torch.stack([self.pixels(example, example.image) for example in examples])
        return DetectionBatch(pixels, tuple(map(_known, examples)))

    def logits(self, model: nn.Module, batch: DetectionBatch) -> Tensor:
        """Return [B * Q, C + 5] float32, one row per query of each image."""
        answer = model(pixel_values=batch.pixels.to(next(model.parameters())))
        queries = int(answer.logits.shape[1])
        self._queries = min(self._queries or queries, queries)
        return torch.cat([answer.logits.float(), answer.pred_boxes.float()], dim=-1).flatten(0, 1)

    def loss(self, logits: Tensor, batch: DetectionBatch) -> Tensor:
        """Return DETR's loss over the labelled images; see `set_prediction.set_loss`."""
        return set_loss(logits, batch.objects)

    def detections(self, model: nn.Module, examples: Sequence[DetectionExample]) -> list[list[Detection]]:
        """Return what a model in evaluation mode detects in each image: one detection per query, the surest first.

        The class of a query is its likeliest one, and its confidence is the probability of that class. Most queries see
        nothing and have a low confidence; `detection_score.SHOWN` is the bound for showing them.

        Raises:
            NonFiniteError: an output of the model is NaN or infinite.
        """
        found: list[list[Detection]] = []
        for start in range(0, len(examples), _AT_ONCE):
            part = examples[start : start + _AT_ONCE]
            with torch.no_grad():
                rows = self.logits(model, self.collate(part)).cpu()
                check_outputs(rows, model)
                rows = rows.reshape(len(part), -1, rows.shape[-1])
            found += [self._found(one, example) for one, example in zip(rows, part, strict=True)]
        return found

    def _found(self, rows: Tensor, example: DetectionExample) -> list[Detection]:
        """Return the detections of one image, given [Q, C + 5]."""
        confidence, columns = rows[:, :-4].softmax(-1)[:, :-1].max(-1)
        size = torch.tensor([example.width, example.height, example.width, example.height])
        sides: list[list[float]] = cast(Any, to_corners(rows[:, -4:]) * size).tolist()
        sure: list[tuple[float, int]] = list(
            zip(cast(Any, confidence).tolist(), cast(Any, columns).tolist(), strict=True)
        )
        found = [
            Detection(Box(left, top, right, bottom, self.classes[column]).clipped(example.width, example.height), value)
            for (left, top, right, bottom), (value, column) in zip(sides, sure, strict=True)
        ]
        return sorted(found, key=lambda one: -one.confidence)

    def answers(self, model: nn.Module, examples: Sequence[DetectionExample]) -> list[Answer]:
        """Return what a model in evaluation mode detects in each image, as far as it is sure enough to be shown."""
        shown = self._shown(model, examples)
        return [
            Answer(
                _counted([one.box for one in found]),
                regions=tuple(_region(one.box, example, one.confidence) for one in found),
            )
            for example, found in zip(examples, shown, strict=True)
        ]

    def predict(self, model: nn.Module, examples: Sequence[DetectionExample]) -> list[Prediction]:
        """Return what a model in evaluation mode detects in each image, as far as it is sure enough to be shown."""
        return [
            Prediction(_counted([one.box for one in found]), objects=tuple(map(_object, found)))
            for found in self._shown(model, examples)
        ]

    def _shown(self, model: nn.Module, examples: Sequence[DetectionExample]) -> list[list[Detection]]:
        return [[one for one in found if one.confidence >= SHOWN] for found in self.detections(model, examples)]

    def score(self, model: nn.Module, examples: Sequence[DetectionExample]) -> Score:
        """Return `ap50`, `map50` and `map` of a model in evaluation mode; see `detection_score`."""
        self._scored_nothing |= bool(examples) and not any(example.boxes for example in examples)
        return detection_score(examples, self.detections(model, examples))

    def notes(self) -> list[str]:
        """Return how many of the distinct images that were read, and of their boxes, are changed by each rule.

        Images with more objects than the detector has queries are counted, too, and a scored set without objects is
        named.
        """
        more = sum(count > (self._queries or count) for count in self._numbers.values())
        crowded = (
            f"{more} images have more objects than the {self._queries} queries of a detector, some of which it misses"
        )
        nothing = "a set without any object was scored: it has no map, and its ap50 says how often nothing is shown"
        return (
            self.kept.notes() + told(self._boxes.values()) + [crowded] * bool(more) + [nothing] * self._scored_nothing
        )


@dataclass(frozen=True)
class DetectionPairBatch:
    """The same examples in the pixels of each model."""

    slm: DetectionBatch
    llm: DetectionBatch


class DetectionPair(_DetectionModality):
    """The modality of detection for two models whose pixels differ, such as in their size.

    Every image is decoded once for both. Logits and scores belong to the tasks `of("slm")` and `of("llm")`.

    Args:
        slm: the task of the SLM.
        llm: the task of the LLM, with the same classes.
    """

    def __init__(self, slm: DetectionTask, llm: DetectionTask):
        super().__init__(slm.classes)
        self.name: str = slm.name
        self.slm: DetectionTask = slm
        self.llm: DetectionTask = llm
        self.options: Mapping[str, Any] = {"slm": slm.options, "llm": llm.options}

    def of(self, role: str) -> DetectionTask:
        """Return the task of one role's model."""
        return self.llm if role == "llm" else self.slm

    def part(self, batch: DetectionPairBatch, role: str) -> DetectionBatch:
        """Return the batch in the pixels of one role's model."""
        return batch.llm if role == "llm" else batch.slm

    def collate(self, examples: Sequence[DetectionExample]) -> DetectionPairBatch:
        """Return one batch per model."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for example in examples:
            image = functools.cache(example.image)
            pairs.append((self.slm.pixels(example, image), self.llm.pixels(example, image)))
        objects = tuple(map(_known, examples))
        return DetectionPairBatch(
            *(DetectionBatch(torch.stack([pair[role] for pair in pairs]), objects) for role in (0, 1))
        )

    def logits(self, model: nn.Module, batch: Any) -> NoReturn:
        """Raise an error, because logits need the pixels of one role."""
        raise TypeError("each role has its own pixels: call of(role).logits with part(batch, role)")

    def score(self, model: nn.Module, examples: Sequence[Any]) -> Score:
        """Raise an error, because a score needs the pixels of one role."""
        raise TypeError("each role has its own pixels: call of(role).score")

    def notes(self) -> list[str]:
        """Return what was changed of the images and boxes that the SLM's task read."""
        return self.slm.notes()


def _objects(batch: DetectionBatch | DetectionPairBatch) -> tuple[Objects | None, ...]:
    return batch.objects if isinstance(batch, DetectionBatch) else batch.slm.objects


def _known(example: DetectionExample) -> Objects | None:
    """Return the objects of an example in units of its image; None if it is unlabelled."""
    if example.boxes is None:
        return None
    width, height = example.width, example.height
    boxes = [
        [
            (box.left + box.right) / 2 / width,
            (box.top + box.bottom) / 2 / height,
            (box.right - box.left) / width,
            (box.bottom - box.top) / height,
        ]
        for box in example.boxes
    ]
    classes = [example.classes.index(box.label) for box in example.boxes]
    return Objects(torch.tensor(classes, dtype=torch.int64), torch.tensor(boxes).reshape(-1, 4))


def _counted(boxes: Sequence[Box]) -> str:
    """Return how many boxes there are of each class."""
    counts = Counter(box.label for box in boxes)
    return ", ".join(f"{count} {label}" for label, count in sorted(counts.items())) or "nothing"


def _object(one: Detection) -> Found:
    box = one.box
    return Found(box.label, one.confidence, box.left, box.top, box.right, box.bottom)


def _region(box: Box, example: DetectionExample, confidence: float | None = None) -> Region:
    """Return a box in shares of its image."""
    width, height = example.width, example.height
    return Region(box.left / width, box.top / height, box.right / width, box.bottom / height, box.label, confidence)
