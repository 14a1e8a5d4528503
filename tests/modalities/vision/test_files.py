"""Image files: pixels for each model, by hand, on images of one colour; no network is trained here."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tests.modalities.vision.tiny_classifiers import PREPARED, save_classifier
from torch import nn
from transformers import AutoImageProcessor

from fedcollm.config import ModelConfig, StatisticsConfig
from fedcollm.errors import UserError
from fedcollm.modalities.base import UNLABELLED
from fedcollm.modalities.exhibits import Answer
from fedcollm.modalities.vision.files import ImageFile, ImageFileTask, ImagePair
from fedcollm.modalities.vision.preprocessing import Preprocessor, load_preprocessor
from fedcollm.runs.identity import _plain

CLASSES = ("red", "gray")


def stored(*colours, size: tuple[int, int] = (2, 2), **options) -> bytes:
    """A PNG whose pixels are of one colour."""
    file = io.BytesIO()
    Image.new("RGB" if len(colours) == 3 else "L", size, colours if len(colours) == 3 else colours[0]).save(file, "PNG")
    return file.getvalue()


RED = ImageFile.read("red", stored(255, 0, 0), CLASSES, 0, "ward")
GRAY = ImageFile.read("gray", stored(51), CLASSES, None)


def preprocessor(place: Path, **changes) -> Preprocessor:
    place.mkdir(exist_ok=True)
    small = {"size": {"height": 2, "width": 2}, "do_normalize": False}
    (place / "preprocessor_config.json").write_text(json.dumps({**PREPARED, **small, **changes}), encoding="utf-8")
    return load_preprocessor(ModelConfig(source=str(place)))


@pytest.fixture
def task(tmp_path: Path) -> ImageFileTask:
    return ImageFileTask("colours", CLASSES, preprocessor(tmp_path / "own"))


# --- examples ---


def test_example_has_a_label_a_group_and_a_content_without_its_file(tmp_path):
    (tmp_path / "other.bmp").write_bytes(stored(255, 0, 0))
    other = ImageFile.read("other", tmp_path / "other.bmp", CLASSES, None)
    assert (RED.label, RED.group, other.label) == ("red", "ward", None)
    assert RED.content == other.content != GRAY.content
    assert (RED.without_label().label, other.with_answer(1).label) == (None, "gray")
    assert (RED.rules, GRAY.rules) == ((), ("converted",))
    assert _plain(RED) == {
        "id": "red",
        "content": RED.content,
        "target": 0,
        "group": "ward",
        "classes": ["red", "gray"],
    }


def test_file_that_changes_during_a_run_is_named(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(stored(1, 2, 3))
    example = ImageFile.read("a", file, CLASSES, 0)
    assert example.image().getpixel((0, 0)) == (1, 2, 3)
    file.write_bytes(stored(1, 2, 4))
    with pytest.raises(UserError, match=r"a\.png: the image has changed"):
        example.image()


def test_broken_file_is_named_when_it_is_read(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"a\.png: can't be read as an image"):
        ImageFile.read("a", tmp_path / "a.png", CLASSES, 0)
    with pytest.raises(UserError, match="image b: can't be read as an image"):
        ImageFile.read("b", b"", CLASSES, 0)


# --- pixels ---


def test_batch_is_scaled_to_between_0_and_1(task):
    batch = task.collate([RED, GRAY])
    assert batch.pixels.shape == (2, 3, 2, 2)
    assert batch.pixels[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert batch.pixels[1].flatten().tolist() == pytest.approx([0.2] * 12)
    assert task.targets(batch).tolist() == [0, UNLABELLED]


def test_pixels_are_normalized_and_sized_as_the_model_says(tmp_path):
    changes = {"do_normalize": True, "image_mean": [0.5, 0.0, 0.2], "image_std": [0.5, 1.0, 0.1]}
    made = preprocessor(tmp_path, size={"height": 3, "width": 5}, **changes)
    assert made.shape == (3, 5)
    pixels = made(RED.image())
    assert (pixels.dtype, pixels.shape) == (torch.float32, (3, 3, 5))
    assert pixels[:, 2, 4].tolist() == pytest.approx([1.0, 0.0, -2.0])  # (1 - .5) / .5, 0, (0 - .2) / .1


@pytest.mark.parametrize(
    "changes",
    [
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 4}, "crop_pct": 0.5},
        {"image_processor_type": "EfficientNetImageProcessor", "include_top": True, "image_std": [0.5, 0.5, 0.5]},
        {"image_processor_type": "MobileNetV2ImageProcessor", "size": {"shortest_edge": 6},
         "do_center_crop": True, "crop_size": {"height": 4, "width": 4}},
        {"image_processor_type": "ViTImageProcessor", "resample": 0},
    ],
)  # fmt: skip
def test_pixels_are_those_of_the_models_own_processor(tmp_path, changes):
    made = preprocessor(tmp_path, **changes)
    image = Image.radial_gradient("L").crop((0, 0, 90, 60)).convert("RGB")
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(made(image), theirs[0])
    assert made.to_wire() != preprocessor(tmp_path).to_wire()


def test_preprocessor_that_keeps_the_sizes_of_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="A batch needs one shape"):
        preprocessor(tmp_path, do_resize=False)


def test_model_that_does_not_say_how_images_are_prepared_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        load_preprocessor(ModelConfig(source=str(tmp_path)))


def test_model_that_reads_images_of_another_size_is_refused(tmp_path):
    place = save_classifier("vit", tmp_path / "vit", size={"height": 16, "width": 16})
    section = ModelConfig(source=place, dtype="float32")
    task = ImageFileTask("colours", CLASSES, load_preprocessor(section))
    with pytest.raises(UserError, match=r"slm\.source .* does not read the images of 16 x 16 pixels"):
        task.load_model(section, "slm", torch.device("cpu"), 0)


def test_decoded_images_are_kept_up_to_a_bound(task, monkeypatch):
    decoded = []
    read = ImageFile.image
    monkeypatch.setattr(ImageFile, "image", lambda self: decoded.append(self.id) or read(self))
    task.kept.room = 1
    for example in (RED, RED, GRAY, RED):
        task.collate([example])
    assert decoded == ["red", "gray", "red"]


def test_notes_count_distinct_images_that_were_changed(task):
    assert task.notes() == []
    task.collate([RED, GRAY])
    task.collate([GRAY])
    assert task.notes() == ["1 images were converted to RGB from gray, palette, CMYK or another colour model"]


# --- two models ---


def test_each_model_gets_its_own_pixels_of_an_image_decoded_once(task, tmp_path, monkeypatch):
    other = ImageFileTask("colours", CLASSES, preprocessor(tmp_path / "other", size={"height": 4, "width": 4}))
    pair = ImagePair(task, other)
    decoded = []
    read = ImageFile.image
    monkeypatch.setattr(ImageFile, "image", lambda self: decoded.append(self.id) or read(self))
    batch = pair.collate([RED, GRAY])
    assert decoded == ["red", "gray"]
    assert (pair.of("slm"), pair.of("llm")) == (task, other)
    assert pair.part(batch, "slm").pixels.shape == (2, 3, 2, 2)
    assert pair.part(batch, "llm").pixels.shape == (2, 3, 4, 4)
    assert pair.targets(batch).tolist() == [0, UNLABELLED]
    assert pair.rows(batch) == 2
    rows = pair.align(batch, torch.zeros(2, 2), torch.ones(2, 2))
    assert (rows.slm_targets.tolist(), rows.llm.tolist()) == ([0, UNLABELLED], [[1.0, 1.0], [1.0, 1.0]])
    assert pair.facts() == {"classes": ["red", "gray"]}
    for call in (pair.logits, pair.score):
        with pytest.raises(TypeError, match="its own pixels"):
            call(nn.Identity(), [])


# --- outputs, controls and files ---


class RednessIsTheLogit(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pixel_values):
        means = pixel_values.mean(dim=(2, 3))
        return SimpleNamespace(logits=torch.stack([means[:, 0], means[:, 1]], dim=1) * self.weight)


def test_score_probabilities_and_words(task):
    gray = GRAY.with_answer(1)
    score = task.score(RednessIsTheLogit(), [RED, gray])
    assert (score.sums, score.count) == ({"acc": 1.0}, 2)  # gray has equal logits: the first class wins
    assert score.confusion == {("red", "red"): 1, ("gray", "red"): 1}
    probabilities = task.probabilities(RednessIsTheLogit(), [GRAY])
    torch.testing.assert_close(probabilities[0], torch.tensor([0.5, 0.5]))
    assert task.answers(RednessIsTheLogit(), [RED, gray]) == [Answer("red", True), Answer("red", False)]
    exhibit = task.exhibit(RED)
    assert (exhibit.id, exhibit.truth) == ("red", "red")
    assert Image.open(io.BytesIO(exhibit.picture)).getpixel((0, 0)) == RED.image().getpixel((0, 0))
    assert task.size(RED) == 1


def test_control_reads_gray_images_of_16_pixels(task):
    evidence = task.evidence([RED, GRAY], StatisticsConfig(features="ngrams"))
    assert evidence.rows.shape == (2, 256)
    assert evidence.rows[1].tolist() == pytest.approx([1 / 16] * 256)  # a norm of 1
    assert evidence.targets.tolist() == [[1.0, -1.0], [0.0, 0.0]]
    assert evidence.labels == CLASSES
    assert task.control_pixels(GRAY).tolist() == pytest.approx([0.2] * 256)


def test_examples_are_written_with_their_files_and_read_back(task, tmp_path):
    (tmp_path / "gray.png").write_bytes(stored(51))
    gray = ImageFile.read("g", tmp_path / "gray.png", CLASSES, 1)
    file = tmp_path / "examples.jsonl"
    file.write_text(task.write_examples([RED, gray]), encoding="utf-8")
    again = task.read_examples(file)
    assert [(e.id, e.label, e.group, e.content) for e in again] == [
        ("red", "red", "ward", RED.content),
        ("g", "gray", None, gray.content),
    ]
    assert task.write_examples([]) == ""


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "x", "image": "", "label": "blue"}, "is no example"),
        ({"id": "x", "image": "?", "label": "red"}, "not valid base64"),
        ({"id": "x", "image": "", "label": "red"}, "image x: can't be read"),
        ({"id": 1, "image": "", "label": "red"}, "is no example"),
    ],
)
def test_line_that_is_no_example_is_named(task, tmp_path, row, said):
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=said):
        task.read_examples(file)
