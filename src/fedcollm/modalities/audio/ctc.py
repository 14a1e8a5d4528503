"""Speech recognition with CTC, as in wav2vec2 (Baevski et al., arXiv 2006.11477): a row of logits per frame."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from fedcollm.errors import UserError
from fedcollm.modalities.audio.speech import SpeechTask
from fedcollm.modalities.audio.speech_models import convolutions, frames_of
from fedcollm.modalities.audio.transcripts import SpeechExample, transcript
from fedcollm.modalities.base import UNLABELLED
from fedcollm.models.pretrained import from_pretrained, transformers_class

_ADVICE = "Give the directory of a CTC model of transformers, such as wav2vec2, with its vocab.json."


@dataclass(frozen=True)
class CtcBatch:
    """B clips, each [T_i] float32, their numbers of frames, and the columns of their transcripts (None: unlabelled)."""

    clips: list[Tensor]
    frames: list[int]
    letters: list[Tensor | None]


class CtcTask(SpeechTask):
    """Speech recognition with CTC (Graves et al. 2006).

    The transcripts that are learned are normalized (`normalized`). A letter is looked up as it is, then in upper case;
    one that the vocabulary lacks is left out. A transcript that has more letters than its clip has frames teaches
    nothing. Both are counted (`notes`). Both models must have the same convolutions, so that their frames are the same.

    Args:
        name: name of the task, for reports.
        slm: directory of the SLM, with its feature extractor and its tokenizer.
        llm: the same for the LLM; by default that of the SLM.
        longest: the longest clip in seconds; longer ones are cut off at their end.

    Raises:
        UserError: a directory can't be read, or the models differ in vocabulary, sampling rate or frames.
    """

    def __init__(self, name: str, slm: str, llm: str | None = None, longest: float = 30.0):
        self._left_out: set[str] = set()
        self._too_long: set[str] = set()
        self.convolutions: tuple[tuple[int, int], ...] = _convolutions(slm)
        if llm is not None and _convolutions(llm) != self.convolutions:
            raise UserError(
                f"{name}: the SLM's convolutions {self.convolutions} (kernel, stride) and the LLM's "
                f"{_convolutions(llm)} make different frames. Choose two models of one family."
            )
        super().__init__(name, slm, llm, longest)
        self._columns: Mapping[str, int] = self.tokenizer.get_vocab()
        self._blank = int(self.tokenizer.pad_token_id)

    def read_tokenizer(self, source: str) -> Any:
        """Return the vocabulary of letters in a model's directory.

        Raises:
            UserError: there is none.
        """
        return from_pretrained(transformers_class("Wav2Vec2CTCTokenizer"), source, _ADVICE)

    def frames(self, samples: int) -> int:
        """Return the number of frames that the convolutions make of so many samples."""
        return frames_of(self.convolutions, samples)

    def footprint(self, example: SpeechExample | None, shape: Any, scoring: bool = False) -> tuple[int, int]:
        """Return the number of frames of a clip, 10 s long if there is none, which is also its number of rows."""
        frames = self.frames(self.size(example) if example is not None else 10 * self.reader.rate)
        return frames, frames

    def collate(self, examples: Sequence[SpeechExample]) -> CtcBatch:
        """Return a batch of decoded clips.

        Raises:
            UserError: a recording can't be used, or a transcript has no word.
        """
        clips = [self.reader.read(example.recording) for example in examples]
        frames = [self.frames(len(clip)) for clip in clips]
        letters = [self._encoded(example, count) for example, count in zip(examples, frames, strict=True)]
        return CtcBatch(clips, frames, letters)

    def _encoded(self, example: SpeechExample, frames: int) -> Tensor | None:
        """Return the columns of a transcript; None if the example is unlabelled or teaches nothing."""
        if example.label is None:
            return None
        said = transcript(example).replace(" ", self.tokenizer.word_delimiter_token)
        found = [next((self._columns[s] for s in (sign, sign.upper()) if s in self._columns), None) for sign in said]
        if None in found:
            self._left_out.add(example.id)
        columns = [column for column in found if column is not None]
        repeats = sum(one == other for one, other in itertools.pairwise(columns))
        if not 0 < len(columns) + repeats <= frames:  # a blank must part two equal letters
            self._too_long.add(example.id)
            return None
        return torch.tensor(columns)

    def logits(self, model: nn.Module, batch: CtcBatch) -> Tensor:
        """Return [P, V] float32 logits, one row per frame, without those of padding."""
        frames = model(**self.inputs(model, batch.clips)).logits.float()  # [B, T, V]
        return torch.cat([rows[:count] for rows, count in zip(frames, batch.frames, strict=True)])

    def targets(self, batch: CtcBatch) -> Tensor:
        """Return [P] int64, all `UNLABELLED`: CTC does not know which frames a letter is in."""
        return torch.full((sum(batch.frames),), UNLABELLED)

    def labelled(self, batch: CtcBatch) -> int:
        """Return the number of labelled clips."""
        return sum(letters is not None for letters in batch.letters)

    def loss(self, logits: Tensor, batch: CtcBatch) -> Tensor:
        """Return the CTC loss per letter, averaged over labelled clips; without any, zero with a zero gradient."""
        pairs = zip(_parts(logits.log_softmax(-1), batch.frames), batch.letters, strict=True)
        known = [(rows, letters) for rows, letters in pairs if letters is not None]
        if not known:
            return 0 * logits.sum()
        rows, letters = zip(*known, strict=True)
        sizes = [torch.tensor([len(one) for one in many]) for many in (rows, letters)]
        return functional.ctc_loss(
            pad_sequence(list(rows)), torch.cat(letters).to(logits.device), *sizes, blank=self._blank
        )

    def hear(self, model: nn.Module, examples: Sequence[SpeechExample]) -> list[str]:
        """Return the likeliest letter of each frame, with repeats collapsed and blanks removed."""
        batch = self.collate(examples)
        best = self.logits(model, batch).argmax(-1).cpu()
        return [self.decode(path) for path in _parts(best, batch.frames)]

    def decode(self, path: Tensor) -> str:
        """Return the text of a path of columns [T]."""
        names = {column: token for token, column in self._columns.items()}
        columns: list[int] = cast(Any, path).tolist()
        kept = [column for column, _ in itertools.groupby(columns) if column != self._blank]
        one = self.tokenizer
        special = {one.pad_token, one.unk_token, one.bos_token, one.eos_token}
        text = "".join(names[column] for column in kept if names.get(column, "") not in special | {""})
        return text.replace(self.tokenizer.word_delimiter_token, " ")

    def notes(self) -> list[str]:
        """Return what was changed of recordings and transcripts."""
        said = {
            "transcripts with characters that the vocabulary lacks, which are left out": self._left_out,
            "transcripts with no letter, or more than their clip has frames, which teach nothing": self._too_long,
        }
        return super().notes() + [f"{words}: {len(seen)}" for words, seen in said.items() if seen]


def _parts(rows: Tensor, counts: list[int]) -> tuple[Tensor, ...]:
    """Return the rows of each clip."""
    return cast(Any, rows).split(counts)


def _convolutions(source: str) -> tuple[tuple[int, int], ...]:
    """Return kernel and stride of each convolution between samples and frames.

    Raises:
        UserError: the directory can't be read, or its model has none.
    """
    shape = from_pretrained(transformers_class("AutoConfig"), source, _ADVICE)
    if not hasattr(shape, "conv_kernel"):
        raise UserError(f"model source {source!r} has no convolutions on samples. {_ADVICE}")
    return convolutions(shape)
