"""Audio classification, where each clip has one row of logits."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedcollm.config import ModelConfig, StatisticsConfig
from fedcollm.errors import UserError
from fedcollm.modalities.audio.evidence import audio_evidence
from fedcollm.modalities.audio.features import Features
from fedcollm.modalities.audio.lines import recording_of, recording_row
from fedcollm.modalities.audio.models import AudioModels
from fedcollm.modalities.audio.recordings import Reader, Recording
from fedcollm.modalities.audio.spectrogram import heard_exhibit
from fedcollm.modalities.base import UNLABELLED
from fedcollm.modalities.classification import ClassificationTask
from fedcollm.modalities.evidence import Evidence
from fedcollm.modalities.exhibits import Exhibit
from fedcollm.modalities.facts import LONGEST_CLIP
from fedcollm.modalities.jsonl import read_jsonl, shorten


@dataclass(frozen=True, eq=False)
class AudioExample:
    """A recording and its class.

    Attributes:
        id: id of the example, unique within its data set.
        recording: the recording.
        label: name of the class, or None if unlabelled.
        group: natural client of the example, such as its speaker, if the data has one.
        classes: names of all classes, so that `with_answer` can choose one.
    """

    id: str
    recording: Recording
    label: str | None
    group: str | None = None
    classes: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """A digest of the encoded recording.

        Raises:
            UserError: the recording can't be used.
        """
        return self.recording.facts.digest

    def without_label(self) -> "AudioExample":
        """Return the same recording without its class."""
        return replace(self, label=None)

    def with_answer(self, answer: int) -> "AudioExample":
        """Return the same recording with the class of this index."""
        return replace(self, label=self.classes[answer])


@dataclass(frozen=True)
class AudioBatch:
    """B clips, each [T_i] float32 at the modality's rate, and targets [B] int64."""

    clips: list[Tensor]
    targets: Tensor


class AudioTask(AudioModels, ClassificationTask):
    """The modality of audio classification, with any audio classifier of transformers.

    Args:
        name: name of the task, for reports.
        classes: names of the classes, in the order of the columns of the logits.
        slm: what turns clips into the SLM's inputs.
        llm: the same for the LLM; by default that of the SLM.

    Raises:
        UserError: the two models need different sampling rates.
    """

    def __init__(self, name: str, classes: Sequence[str], slm: Features, llm: Features | None = None):
        self.name = name
        self.classes: tuple[str, ...] = tuple(classes)
        both = {"slm": slm, "llm": llm or slm}
        if both["llm"].rate != slm.rate:
            raise UserError(
                f"{name}: the SLM takes audio of {slm.rate} Hz and the LLM of {both['llm'].rate} Hz. Choose models "
                "with one sampling rate."
            )
        self.reader: Reader = Reader(slm.rate, min(features.longest for features in both.values()))
        self.features: Features = slm
        self.options: Mapping[str, Any] = {"classes": list(self.classes), **slm.options}
        self._roles: dict[str, AudioTask] = {"slm": self}
        if llm is not None and llm is not slm:
            other = copy.copy(self)
            other.features, other.options = llm, {"classes": list(self.classes), **llm.options}
            self._roles["llm"] = other

    def of(self, role: str) -> "AudioTask":
        """Return the modality with the features of one role; both count what they read together."""
        return self._roles.get(role, self)

    def load_model(self, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
        """Return an audio classifier with one column per class.

        Raises:
            UserError: the source can't be loaded, or has a different number of classes.
        """
        return self.with_columns(super().load_model(section, role, device, seed), section, role)

    def size(self, example: AudioExample) -> int:
        """Return the number of samples of a clip."""
        return self.reader.size(example.recording)

    def lengths(self, example: AudioExample) -> dict[str, int]:
        """Return the duration of a clip in tenths of a second."""
        return {"tenths of a second": round(10 * self.size(example) / self.reader.rate)}

    def collate(self, examples: Sequence[AudioExample]) -> AudioBatch:
        """Return a batch of decoded clips.

        Raises:
            UserError: a recording can't be used, or a label is not one of the classes.
        """
        targets = torch.tensor([self.target(example) for example in examples])
        return AudioBatch([self.reader.read(example.recording) for example in examples], targets)

    def target(self, example: AudioExample) -> int:
        """Return the column of an example's class, or `UNLABELLED`.

        Raises:
            UserError: the label is not one of the classes.
        """
        if example.label is None:
            return UNLABELLED
        if example.label not in self.classes:
            raise UserError(
                f"{example.id}: label {example.label!r} is not one of the classes of {self.name}: "
                f"{', '.join(self.classes)}. Correct the label."
            )
        return self.classes.index(example.label)

    def logits(self, model: nn.Module, batch: AudioBatch) -> Tensor:
        """Return [B, classes] float32 logits, one row per clip."""
        parameter = next(model.parameters())
        inputs = {
            name: value.to(parameter) if value.is_floating_point() else value.to(parameter.device)
            for name, value in self.features(batch.clips).items()
        }
        return model(**inputs).logits.float()

    def exhibit(self, example: AudioExample) -> Exhibit:
        """Return the spectrogram and the class."""
        return heard_exhibit(example, self.reader)

    def evidence(
        self, examples: Sequence[AudioExample], features: StatisticsConfig, model: nn.Module | None = None
    ) -> Evidence:
        """Return one row per clip; see `audio_evidence`."""
        return audio_evidence(self, examples, features, model)

    def notes(self) -> list[str]:
        """Return what was changed of the recordings, see `Reader.notes`."""
        return self.reader.notes()

    def facts(self) -> dict[str, Any]:
        """Return the names of the classes, and the duration of the longest clip, in milliseconds."""
        return {"classes": list(self.classes), "milliseconds": min(round(1_000 * self.reader.longest), LONGEST_CLIP)}

    def write_examples(self, examples: Sequence[AudioExample]) -> str:
        """Return examples as JSON lines that contain the recordings."""
        return "".join(json.dumps(recording_row(example)) + "\n" for example in examples)

    def read_examples(self, path: Path) -> list[Any]:
        """Return the labelled examples that `write_examples` wrote.

        Raises:
            UserError: the file can't be read, or a line is not an example of these classes.
        """
        return [self._example(row, f"{path}, line {number}") for number, row in read_jsonl(path)]

    def _example(self, row: Mapping[str, Any], place: str) -> AudioExample:
        recording = recording_of(row, place)
        if row["label"] not in self.classes:
            raise UserError(
                f"{place}: label {shorten(row['label'])} is not one of {', '.join(self.classes)}. Correct the label."
            )
        return AudioExample(row["id"], recording, row["label"], row.get("group"), self.classes)
