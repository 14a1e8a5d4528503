"""Classification of image files, with classifiers that may read images of different sizes."""

import base64
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image
from torch import Tensor, nn

from fedcollm.config import ModelConfig, StatisticsConfig
from fedcollm.errors import UserError
from fedcollm.messages import Score
from fedcollm.modalities.base import UNLABELLED, Modality
from fedcollm.modalities.evidence import Evidence
from fedcollm.modalities.exhibits import Exhibit
from fedcollm.modalities.jsonl import read_jsonl, shorten
from fedcollm.modalities.pictures import picture
from fedcollm.modalities.plain_text import check_text
from fedcollm.modalities.vision.classifiers import ClassifierModels
from fedcollm.modalities.vision.images import decode, fingerprint
from fedcollm.modalities.vision.kept_pixels import KeptPixels
from fedcollm.modalities.vision.preprocessing import Preprocessor
from fedcollm.modalities.vision.task import ImageBatch, ImageTask

#: Side of the gray image that the control without a model reads.
_CONTROL_SIDE = 16


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image in a file, and its class.

    Attributes:
        id: id of the example, unique within its data.
        source: the file, or its content. It is decoded whenever a batch needs it.
        classes: names of the task's classes.
        target: index of the class, or None if unlabelled.
        content: the fingerprint of the pixels, which tells duplicates apart.
        rules: names of the rules that changed the image (keys of `images.RULES`).
        group: natural client of the example, if the data has one.
    """

    id: str
    source: Path | bytes
    classes: tuple[str, ...]
    target: int | None
    content: str
    rules: tuple[str, ...] = ()
    group: str | None = None

    @staticmethod
    def read(
        id: str, source: Path | bytes, classes: tuple[str, ...], target: int | None, group: str | None = None
    ) -> "ImageFile":
        """Return an example, after decoding its image once.

        Raises:
            UserError: the image is missing, broken or too large.
        """
        image, rules = decode(source, _name(id, source))
        return ImageFile(id, source, classes, target, fingerprint(image), rules, group)

    @property
    def label(self) -> str | None:
        """Name of the class, or None if unlabelled."""
        return None if self.target is None else self.classes[self.target]

    def without_label(self) -> "ImageFile":
        """Return the same image without its class."""
        return replace(self, target=None)

    def with_answer(self, answer: int) -> "ImageFile":
        """Return the same image with the class of this index."""
        return replace(self, target=answer)

    def image(self) -> Image.Image:
        """Return the image in RGB.

        Raises:
            UserError: the file is not the one any more that was read at first.
        """
        image = decode(self.source, _name(self.id, self.source)).image
        if fingerprint(image) != self.content:
            raise UserError(
                f"{_name(self.id, self.source)}: the image has changed since the run began. Put the file back, or "
                "start a new run."
            )
        return image

    def to_wire(self) -> Mapping[str, Any]:
        """Return plain values for cache keys; the fingerprint stands for the pixels."""
        values = {"id": self.id, "content": self.content, "target": self.target, "group": self.group}
        return {**values, "classes": list(self.classes)}


def _name(id: str, source: Path | bytes) -> str:
    return f"image {id}" if isinstance(source, bytes) else str(source)


class ImageFileTask(ClassifierModels, ImageTask):
    """The modality of image files, for one model or two that read the same pixels.

    Args:
        name: name of the task, for reports.
        classes: names of the classes, in the order of the columns of the logits.
        preprocessor: makes the model's pixels.
    """

    def __init__(self, name: str, classes: Sequence[str], preprocessor: Preprocessor):
        ImageTask.__init__(self, name, classes)
        self.preprocessor = preprocessor
        self.options: Mapping[str, Any] = {"classes": list(self.classes), "preprocessor": preprocessor.to_wire()}
        self.kept: KeptPixels = KeptPixels(preprocessor, preprocessor.shape)

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return an image classifier with one column per class; see `ClassifierModels.load_model`.

        Raises:
            UserError: it can't be loaded, or does not read images of the size that its preprocessor makes.
        """
        network: Any = super().load_model(section, role, device, seed).eval()
        height, width = self.preprocessor.shape
        parameter = next(network.parameters())
        try:
            with torch.no_grad():
                network(pixel_values=parameter.new_zeros(1, 3, height, width))
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"{role}.source {section.source!r} does not read the images of {height} x {width} pixels in three "
                f"channels that its preprocessor_config.json makes ({str(error).splitlines()[0]}). Correct size or "
                "crop_size there."
            ) from error
        return network

    def pixels(self, example: ImageFile, image: Callable[[], Image.Image]) -> Tensor:
        """Return the pixels of an example, [3, height, width], from memory if they are kept there.

        Args:
            example: the example.
            image: returns its image.
        """
        return self.kept.of(example, image)

    def collate(self, examples: Sequence[Any]) -> ImageBatch:
        """Return a batch of images stacked along a new first dimension."""
        return _batch([self.pixels(example, example.image) for example in examples], examples)

    def exhibit(self, example: ImageFile) -> Exhibit:
        """Return the image and its class."""
        return Exhibit(example.id, truth=example.label or "", picture=picture(example.image()))

    def control_pixels(self, example: Any) -> Tensor:
        """Return [256], the image in gray, scaled to 16 x 16 pixels, from 0 to 1."""
        small = example.image().convert("L").resize((_CONTROL_SIDE, _CONTROL_SIDE), Image.Resampling.BILINEAR)
        return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).float() / 255

    def notes(self) -> list[str]:
        """Return how many of the distinct images that were read are changed by each rule."""
        return self.kept.notes()

    def facts(self) -> dict[str, Any]:
        """Return the names of the classes."""
        return {"classes": list(self.classes)}

    def write_examples(self, examples: Sequence[ImageFile]) -> str:
        """Return examples as JSON lines that contain the files."""
        return "".join(json.dumps(_row(example)) + "\n" for example in examples)

    def read_examples(self, path: Path) -> list[Any]:
        """Return the labelled examples that `write_examples` wrote.

        Raises:
            UserError: the file can't be read, or a line is not an example of these classes.
        """
        return [_example(row, f"{path}, line {number}", self.classes) for number, row in read_jsonl(path)]


@dataclass(frozen=True)
class ImagePairBatch:
    """The same examples in the pixels of each model."""

    slm: ImageBatch
    llm: ImageBatch


class ImagePair(ClassifierModels, Modality):
    """The modality of image files for two models whose pixels differ, such as in their size.

    Every image is decoded once for both. Logits and scores belong to the tasks `of("slm")` and `of("llm")`.

    Args:
        slm: the task of the SLM.
        llm: the task of the LLM, with the same classes.
    """

    def __init__(self, slm: ImageFileTask, llm: ImageFileTask):
        super().__init__(slm.classes)
        self.name: str = slm.name
        self.slm: ImageFileTask = slm
        self.llm: ImageFileTask = llm
        self.options: Mapping[str, Any] = {"slm": slm.options, "llm": llm.options}

    def of(self, role: str) -> ImageFileTask:
        """Return the task of one role's model."""
        return self.llm if role == "llm" else self.slm

    def part(self, batch: ImagePairBatch, role: str) -> ImageBatch:
        """Return the batch in the pixels of one role's model."""
        return batch.llm if role == "llm" else batch.slm

    def collate(self, examples: Sequence[ImageFile]) -> ImagePairBatch:
        """Return one batch per model."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for example in examples:
            image = functools.cache(example.image)
            pairs.append((self.slm.pixels(example, image), self.llm.pixels(example, image)))
        return ImagePairBatch(*(_batch([pair[role] for pair in pairs], examples) for role in (0, 1)))

    def targets(self, batch: ImagePairBatch) -> Tensor:
        """Return [B] int64, the class of each image or `UNLABELLED`."""
        return batch.slm.targets

    def logits(self, model: nn.Module, batch: Any) -> NoReturn:
        """Raise an error, because logits need the pixels of one role."""
        raise TypeError("each role has its own pixels: call of(role).logits with part(batch, role)")

    def score(self, model: nn.Module, examples: Sequence[Any]) -> Score:
        """Raise an error, because a score needs the pixels of one role."""
        raise TypeError("each role has its own pixels: call of(role).score")

    def exhibit(self, example: ImageFile) -> Exhibit:
        """Return the image and its class."""
        return self.slm.exhibit(example)

    def evidence(
        self, examples: Sequence[ImageFile], features: StatisticsConfig, model: nn.Module | None = None
    ) -> Evidence:
        """Return one row per image, for which the SLM's pixels are used if any."""
        return self.slm.evidence(examples, features, model)

    def facts(self) -> dict[str, Any]:
        """Return the names of the classes."""
        return self.slm.facts()

    def write_examples(self, examples: Sequence[ImageFile]) -> str:
        """Return examples as JSON lines that contain the files."""
        return self.slm.write_examples(examples)

    def read_examples(self, path: Path) -> list[Any]:
        """Return the labelled examples that `write_examples` wrote; see `ImageFileTask.read_examples`."""
        return self.slm.read_examples(path)


def _batch(pixels: Sequence[Tensor], examples: Sequence[ImageFile]) -> ImageBatch:
    targets = [UNLABELLED if example.target is None else example.target for example in examples]
    return ImageBatch(torch.stack(list(pixels)), torch.tensor(targets))


def _row(example: ImageFile) -> dict[str, Any]:
    content = example.source if isinstance(example.source, bytes) else example.source.read_bytes()
    image = base64.b64encode(content).decode("ascii")
    return {"id": example.id, "image": image, "label": example.label, "group": example.group}


def _example(row: Mapping[str, Any], place: str, classes: tuple[str, ...]) -> ImageFile:
    """Return the example of a line; raise UserError if it is none."""
    label, group = row.get("label"), row.get("group")
    texts = all(isinstance(row.get(key), str) for key in ("id", "image")) and isinstance(group, str | None)
    if not texts or label not in classes:
        raise UserError(
            f"{place}: {shorten(dict(row))} is no example. Each line needs id, image (a file in base64) and label (one "
            f"of {', '.join(classes)})."
        )
    check_text([row["id"], group], place)
    try:
        content = base64.b64decode(row["image"], validate=True)
    except ValueError as error:
        raise UserError(f"{place}: image is not valid base64 ({error}). Write the file's bytes in base64.") from None
    return ImageFile.read(row["id"], content, classes, classes.index(label), group)
