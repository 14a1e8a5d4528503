"""What the two kinds of speech recognition, CTC and Whisper, have in common."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.messages import Score
from fedcollm.modalities.audio.features import Extractor
from fedcollm.modalities.audio.recordings import Reader
from fedcollm.modalities.audio.spectrogram import heard_exhibit
from fedcollm.modalities.audio.speech_models import SpeechModels, layers_of_slm
from fedcollm.modalities.audio.transcripts import (
    SpeechExample,
    compared,
    read_speech,
    same_columns,
    transcript_score,
    write_speech,
)
from fedcollm.modalities.base import Modality
from fedcollm.modalities.exhibits import Answer, Exhibit
from fedcollm.modalities.facts import LONGEST_CLIP
from fedcollm.modalities.predictions import Prediction
from fedcollm.modalities.tokenizers import tokenizer_digest


class SpeechTask(SpeechModels, Modality):
    """Speech recognition with a pair of models of one family.

    Args:
        name: name of the task, for reports.
        slm: directory of the SLM, with its feature extractor and its tokenizer.
        llm: the same for the LLM; by default that of the SLM.
        longest: the longest clip in seconds; longer ones are cut off at their end.

    Raises:
        UserError: a directory can't be read, or the models have different vocabularies or sampling rates.
    """

    metric = "word accuracy"

    def __init__(self, name: str, slm: str, llm: str | None = None, longest: float = 30.0):
        super().__init__(longest)
        self.name = name
        self.tokenizer: Any = self.read_tokenizer(slm)
        self.features: Extractor = self.read_features(slm, longest)
        self.reader: Reader = Reader(self.features.rate, min(longest, self.features.longest))
        self.options: Mapping[str, Any] = {
            "longest": longest,
            **self.features.options,
            "source": slm,
            "tokenizer_digest": tokenizer_digest(self.tokenizer),
        }
        self._other: tuple[str, Extractor] | None = None
        if llm is not None and llm != slm:
            same_columns(name, self.tokenizer.get_vocab(), self.read_tokenizer(llm).get_vocab())
            self._other = llm, self.read_features(llm, longest)
            if self._other[1].rate != self.features.rate:
                raise UserError(
                    f"{name}: the SLM takes audio of {self.features.rate} Hz and the LLM of {self._other[1].rate} Hz. "
                    "Choose models with one sampling rate."
                )

    def of(self, role: str) -> Self:
        """Return the modality with the features of one role; both count what they read together."""
        if role != "llm" or self._other is None:
            return self
        other = copy.copy(self)
        source, other.features = self._other
        other.options, other._other = {**self.options, **other.features.options, "source": source}, None
        return other

    def read_tokenizer(self, source: str) -> Any:
        """Return the tokenizer in a model's directory.

        Raises:
            UserError: there is none.
        """
        raise NotImplementedError

    def read_features(self, source: str, longest: float) -> Extractor:
        """Return the feature extractor in a model's directory, for clips of at most `longest` seconds.

        Raises:
            UserError: there is none.
        """
        return Extractor(source, longest)

    def slm_layers(self, slm: ModelConfig, llm: nn.Module) -> list[int]:
        """Return the index within the LLM of each layer of an SLM that consists of layers of the LLM."""
        return layers_of_slm(slm, llm)

    def size(self, example: SpeechExample) -> int:
        """Return the number of samples of a clip."""
        return self.reader.size(example.recording)

    def lengths(self, example: SpeechExample) -> dict[str, int]:
        """Return the duration of a clip in tenths of a second."""
        return {"tenths of a second": round(10 * self.size(example) / self.reader.rate)}

    def inputs(self, model: nn.Module, clips: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return what a model reads of clips [T_i], on its device and, for numbers, in its dtype."""
        weight = next(model.parameters())
        made = self.features(clips)
        return {n: v.to(weight) if v.is_floating_point() else v.to(weight.device) for n, v in made.items()}

    def hear(self, model: nn.Module, examples: Sequence[SpeechExample]) -> list[str]:
        """Return what a model in evaluation mode hears in each recording."""
        raise NotImplementedError

    def score(self, model: nn.Module, examples: Sequence[SpeechExample]) -> Score:
        """Return word accuracy and error rates, see `transcript_score`."""
        return transcript_score(examples, self.hear(model, examples))

    def exhibit(self, example: SpeechExample) -> Exhibit:
        """Return the spectrogram and the transcript."""
        return heard_exhibit(example, self.reader)

    def answers(self, model: nn.Module, examples: Sequence[SpeechExample]) -> list[Answer]:
        """Return what a model in evaluation mode hears, with wrong words marked."""
        heard = self.hear(model, examples)
        return [compared(example, text) for example, text in zip(examples, heard, strict=True)]

    def predict(self, model: nn.Module, examples: Sequence[SpeechExample]) -> list[Prediction]:
        """Return what a model in evaluation mode hears."""
        return [Prediction(text) for text in self.hear(model, examples)]

    def notes(self) -> list[str]:
        """Return what was changed of the recordings, see `Reader.notes`."""
        return self.reader.notes()

    def facts(self) -> dict[str, Any]:
        """Return the duration of the longest clip, in milliseconds."""
        return {"milliseconds": min(round(1_000 * self.reader.longest), LONGEST_CLIP)}

    def write_examples(self, examples: Sequence[SpeechExample]) -> str:
        """Return examples as JSON lines that contain the recordings."""
        return write_speech(examples)

    def read_examples(self, path: Path) -> list[Any]:
        """Return the labelled examples that `write_examples` wrote.

        Raises:
            UserError: the file can't be read, or a line is not an example.
        """
        return read_speech(path)
