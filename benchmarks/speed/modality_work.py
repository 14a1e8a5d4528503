"""The work of B6: models with random weights, examples, and the same batches as a user of Trainer would make them.

Everything is made from seeds, so that both processes hold the same. Images and recordings are decoded while a side is
loaded, on both sides. What is left for every step is the same too: images are stacked; clips go through the model's
own feature extractor in the collator, unless the case says `"features": "before"`, with which the peer gets them ready.
"""

import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.modality_data import RATE, SPECIAL, pngs, prepare_images, recordings, spoken, whisper_tokenizer
from fedcollm.config import ModelConfig
from fedcollm.modalities.base import UNLABELLED, Modality

CLASSES = ("cat", "dog", "fox", "hen", "owl")

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """What both sides train on.

    Attributes:
        task: the modality, as `fedcollm run` builds it.
        section: the model.
        examples: what our side gets.
        rows: what the peer's data set holds for some examples, decoded.
        collate: the peer's collator: the keyword arguments of a forward pass from some rows, labels included.
    """

    task: Modality
    section: ModelConfig
    examples: Sequence[Any]
    rows: Callable[[Sequence[Any]], Rows]
    collate: Callable[[Rows], dict[str, Any]]


@contextlib.contextmanager
def made(case: dict) -> Iterator[Work]:
    """The work of a case; the model's directory lasts as long as the context."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        yield KINDS[case["kind"]](case, Path(place))


def _section(place: Path) -> ModelConfig:
    return ModelConfig.model_validate({"source": str(place), "layers": None, "dtype": "float32"})


def _images(case: dict, place: Path) -> Work:
    """Image classification: a ViT, and PNG files of noise."""
    from transformers import ViTConfig, ViTForImageClassification, default_data_collator

    from fedcollm.modalities.vision.files import ImageFile, ImageFileTask
    from fedcollm.modalities.vision.preprocessing import load_preprocessor

    ViTForImageClassification(ViTConfig(num_labels=len(CLASSES), **case["shape"])).save_pretrained(place)
    prepare_images(place, "ViTImageProcessor", case["shape"]["image_size"])
    task = ImageFileTask("images", CLASSES, load_preprocessor(_section(place)))
    examples = [
        ImageFile.read(str(number), content, CLASSES, number % len(CLASSES))
        for number, content in enumerate(pngs(case["examples"], case["shape"]["image_size"]))
    ]
    task.collate(examples)  # decodes and keeps them

    def rows(some: Sequence[ImageFile]) -> Rows:
        return [{"pixel_values": task.pixels(one, one.image), "labels": one.target} for one in some]

    return Work(task, _section(place), examples, rows, default_data_collator)


def _detection(case: dict, place: Path) -> Work:
    """Detection: a YOLOS, and images of noise with one to three boxes."""
    from transformers import YolosConfig, YolosForObjectDetection

    from fedcollm.modalities.vision.boxes import DetectionExample
    from fedcollm.modalities.vision.detection import DetectionTask
    from fedcollm.modalities.vision.detection_pixels import pixels_of

    YolosForObjectDetection(YolosConfig(num_labels=len(CLASSES), **case["shape"])).save_pretrained(place)
    side = case["shape"]["image_size"][0]
    prepare_images(place, "YolosImageProcessor", side)
    task = DetectionTask("detection", CLASSES, pixels_of(_section(place)))
    examples = [
        DetectionExample.read(str(number), content, CLASSES, _boxes(number, side / 4))
        for number, content in enumerate(pngs(case["examples"], side))
    ]
    task.collate(examples)

    def rows(some: Sequence[DetectionExample]) -> Rows:
        batch = task.collate(some)
        return [
            {"pixel_values": pixels, "labels": {"class_labels": known.classes, "boxes": known.boxes}}
            for pixels, known in zip(batch.pixels, batch.objects, strict=True)
            if known is not None
        ]

    return Work(task, _section(place), examples, rows, _stacked_images)


def _boxes(number: int, corner: float) -> list[Any]:
    """One to three boxes of an image, side by side."""
    from fedcollm.modalities.vision.boxes import Box

    return [
        Box(i * corner, i, (i + 1) * corner, 2 * corner, CLASSES[(number + i) % len(CLASSES)])
        for i in range(1 + number % 3)
    ]


def _stacked_images(some: Rows) -> dict[str, Any]:
    """The collator of detection: images are stacked, and their boxes stay a list."""
    pixels = torch.stack([row["pixel_values"] for row in some])
    return {"pixel_values": pixels, "labels": [row["labels"] for row in some]}


def _audio(case: dict, place: Path) -> Work:
    """Audio classification: an AST, and clips of noise."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    from fedcollm.modalities.audio.classification import AudioExample
    from fedcollm.modalities.audio.files import AudioFileTask

    shape = case["shape"]
    ASTForAudioClassification(ASTConfig(num_labels=len(CLASSES), **shape)).save_pretrained(place)
    own = ASTFeatureExtractor(num_mel_bins=shape["num_mel_bins"], max_length=shape["max_length"])
    own.save_pretrained(place)
    task = AudioFileTask("audio", CLASSES, _section(place), None, case["seconds"])
    examples = [
        AudioExample(str(number), recording, CLASSES[number % len(CLASSES)], None, CLASSES)
        for number, recording in enumerate(recordings(case))
    ]

    def labels(some: Rows) -> dict[str, Any]:
        return {"labels": torch.tensor([row["target"] for row in some])}

    def rows(some: Sequence[AudioExample]) -> Rows:
        return [{"clip": task.reader.read(one.recording).numpy(), "target": task.target(one)} for one in some]

    task.collate(examples)
    return Work(task, _section(place), examples, *_heard(case, rows, own, labels))


def _ctc(case: dict, place: Path) -> Work:
    """Speech recognition with CTC: a wav2vec2 of letters, and clips of noise with transcripts."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    from fedcollm.modalities.audio.ctc import CtcTask

    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    shape = Wav2Vec2Config(
        vocab_size=len(letters), pad_token_id=0, ctc_loss_reduction="mean", apply_spec_augment=False,
        layerdrop=0.0, **_QUIET, **case["shape"],
    )  # fmt: skip
    Wav2Vec2ForCTC(shape).save_pretrained(place)
    own = Wav2Vec2FeatureExtractor(return_attention_mask=shape.feat_extract_norm == "layer")
    own.save_pretrained(place)
    (place / "letters.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    Wav2Vec2CTCTokenizer(str(place / "letters.json")).save_pretrained(place)
    task = CtcTask("ctc", str(place), None, case["seconds"])
    examples = spoken(case)

    def labels(some: Rows) -> dict[str, Any]:
        written = torch.nn.utils.rnn.pad_sequence([row["target"] for row in some], True, UNLABELLED)
        return {"labels": written}

    def rows(some: Sequence[Any]) -> Rows:
        batch = task.collate(some)
        return [{"clip": clip.numpy(), "target": known} for clip, known in zip(batch.clips, batch.letters, strict=True)]

    task.collate(examples)
    return Work(task, _section(place), examples, *_heard(case, rows, own, labels, padding=True))


def _whisper(case: dict, place: Path) -> Work:
    """Speech recognition with Whisper, and clips of noise with transcripts."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    from fedcollm.modalities.audio.whisper import WhisperTask

    tokenizer = whisper_tokenizer()
    end, start = (tokenizer.convert_tokens_to_ids(token) for token in SPECIAL[:2])
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    shape = WhisperConfig(begin_suppress_tokens=None, suppress_tokens=None, **ids, **case["shape"])
    shape.max_source_positions = math.ceil(100 * case["seconds"]) // 2
    WhisperForConditionalGeneration(shape).save_pretrained(place)
    tokenizer.save_pretrained(place)
    WhisperFeatureExtractor(shape.num_mel_bins, chunk_length=case["seconds"]).save_pretrained(place)
    task = WhisperTask("whisper", str(place), None, float(case["seconds"]))
    examples = spoken(case)

    def labels(some: Rows) -> dict[str, Any]:
        read = torch.nn.utils.rnn.pad_sequence([row["read"] for row in some], True, end)
        written = torch.nn.utils.rnn.pad_sequence([row["target"] for row in some], True, UNLABELLED)
        return {"decoder_input_ids": read, "labels": written}

    def rows(some: Sequence[Any]) -> Rows:
        return [_whisper_row(task.collate([one])) for one in some]

    task.collate(examples)
    return Work(task, _section(place), examples, *_heard(case, rows, task.features.own, labels))


def _whisper_row(batch: Any) -> dict[str, Any]:
    """A clip, what the decoder reads, and what it predicts: nothing where it reads the prompt."""
    target = torch.full_like(batch.tokens[0], UNLABELLED)
    target[batch.rows[0]] = batch.targets
    return {"clip": batch.clips[0].numpy(), "read": batch.tokens[0], "target": target}


def _heard(
    case: dict,
    rows: Callable[[Sequence[Any]], Rows],
    own: Any,
    labels: Callable[[Rows], dict[str, Any]],
    **options: Any,
) -> tuple[Callable[[Sequence[Any]], Rows], Callable[[Rows], dict[str, Any]]]:
    """The peer's rows and its collator; the feature extractor belongs to one of them, as the case says."""

    def extracted(some: Rows) -> dict[str, Any]:
        return dict(own([row["clip"] for row in some], sampling_rate=RATE, return_tensors="pt", **options))

    if case.get("features") != "before":
        return rows, lambda some: extracted(some) | labels(some)

    def ready(some: Sequence[Any]) -> Rows:
        return [
            {name: value for name, value in row.items() if name != "clip"} | {"features": extracted([row])}
            for row in rows(some)
        ]

    def stacked(some: Rows) -> dict[str, Any]:
        names = some[0]["features"]
        return {name: torch.cat([row["features"][name] for row in some]) for name in names} | labels(some)

    return ready, stacked


#: Makes the kinds' work.
KINDS: Mapping[str, Callable[[dict, Path], Work]] = {
    "images": _images,
    "detection": _detection,
    "audio": _audio,
    "ctc": _ctc,
    "whisper": _whisper,
}

#: Dropout of wav2vec2 that is on by default: no two sides draw the same masks.
_QUIET = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout"), 0.0
)
