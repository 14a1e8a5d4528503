"""Speech recognition with Whisper (Radford et al., arXiv 2212.04356): a row of logits per token of the transcript."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fedcollm.errors import UserError
from fedcollm.modalities.audio import speech_models
from fedcollm.modalities.audio.features import Extractor
from fedcollm.modalities.audio.speech import SpeechTask
from fedcollm.modalities.audio.transcripts import SpeechExample, transcript
from fedcollm.modalities.base import UNLABELLED
from fedcollm.models.pretrained import from_pretrained, transformers_class

_ADVICE = "Give the directory of a Whisper model of transformers, with its tokenizer and its feature extractor."

_PER_POSITION = 2  # frames of the spectrogram, of 10 ms, in a position of the encoder


@dataclass(frozen=True)
class WhisperBatch:
    """B clips and the tokens of their transcripts.

    Attributes:
        clips: [T_i] float32 samples of each clip.
        tokens: [B, N] int64, what the decoder reads: the prompt, then the transcript, then padding.
        rows: [B, N] bool, true where the decoder predicts a token of the transcript or its end; P values are true.
        targets: [P] int64, the tokens to predict; `UNLABELLED` for an unlabelled clip, whose one row is its first.
    """

    clips: list[Tensor]
    tokens: Tensor
    rows: Tensor
    targets: Tensor


class WhisperTask(SpeechTask):
    """Speech recognition with Whisper: teacher forcing on the transcripts, greedy decoding for scores.

    The encoder reads clips of `longest` seconds in place of the usual 30: its fixed positions are cut to that length.
    The transcripts that are learned are normalized (`normalized`), so that what is scored is what is learned. A
    transcript with more than `most_tokens` tokens is cut off there, and counted (`notes`).

    Args:
        name: name of the task, for reports.
        slm: directory of the SLM, with its feature extractor and its tokenizer.
        llm: the same for the LLM; by default that of the SLM.
        longest: the longest clip in seconds, at most 30; longer ones are cut off at their end.
        prompt: the tokens that the decoder starts with, such as `<|startoftranscript|> <|notimestamps|>`; by default
            those of the tokenizer.
        most_tokens: the largest number of tokens of a transcript, with its end; by default those of
            `speech_models.most_tokens`, or as many as the models' decoders read.

    Raises:
        UserError: a directory can't be read, or the models differ in vocabulary or sampling rate.
    """

    def __init__(
        self,
        name: str,
        slm: str,
        llm: str | None = None,
        longest: float = 30.0,
        prompt: Sequence[str] = (),
        most_tokens: int | None = None,
    ):
        self._cut: set[str] = set()
        super().__init__(name, slm, llm, longest)
        self.prompt: list[int] = self.tokenizer.convert_tokens_to_ids(list(prompt)) or self.tokenizer.prefix_tokens
        room = min(map(_positions, {slm, llm or slm})) - len(self.prompt) + 1  # the last token is never an input
        self.most_tokens: int = most_tokens or max(min(speech_models.most_tokens(longest), room), 1)
        self.end: int = int(self.tokenizer.eos_token_id)
        self.options: Mapping[str, Any] = {**self.options, "prompt": list(self.prompt), "most_tokens": self.most_tokens}

    def read_tokenizer(self, source: str) -> Any:
        """Return the tokenizer in a model's directory.

        Raises:
            UserError: there is none.
        """
        return from_pretrained(transformers_class("WhisperTokenizer"), source, _ADVICE)

    def read_features(self, source: str, longest: float) -> Extractor:
        """Return the feature extractor in a model's directory, for clips of at most `longest` seconds.

        Raises:
            UserError: there is none, or `longest` is more than it takes.
        """
        features = Extractor(source)
        own = features.own
        if type(own) is not transformers_class("WhisperFeatureExtractor") or not 0 < longest <= own.chunk_length:
            raise UserError(f"{self.name}: clips of {longest:g} s do not fit {source!r}. {_ADVICE}")
        own.n_samples = round(longest * own.sampling_rate)
        own.nb_max_frames = own.n_samples // own.hop_length
        features.longest = longest
        return features

    def footprint(self, example: SpeechExample | None, shape: Any, scoring: bool = False) -> tuple[int, int]:
        """Return the number of positions of encoder and decoder together, and of rows."""
        return round(self.reader.longest * 100) // _PER_POSITION + self.most_tokens, self.most_tokens

    def collate(self, examples: Sequence[SpeechExample]) -> WhisperBatch:
        """Return a batch of decoded clips with the tokens of their transcripts.

        Raises:
            UserError: a recording can't be used, or a transcript has no word.
        """
        clips, written = [self.reader.read(e.recording) for e in examples], [self._written(e) for e in examples]
        inputs = [torch.tensor([*self.prompt, *tokens[:-1]]) for tokens in written]
        rows = [torch.arange(len(line)) >= len(self.prompt) - 1 for line in inputs]
        targets = [token for tokens in written for token in tokens]
        return WhisperBatch(
            clips,
            pad_sequence(inputs, batch_first=True, padding_value=self.end),
            pad_sequence(rows, batch_first=True),
            torch.tensor(targets),
        )

    def _written(self, example: SpeechExample) -> list[int]:
        """Return the tokens of a transcript, none of them special, and its end; or one `UNLABELLED`."""
        if example.label is None:
            return [UNLABELLED]
        text, as_text = " " + transcript(example), {"add_special_tokens": False, "split_special_tokens": True}
        tokens: list[int] = self.tokenizer(text, **as_text).input_ids
        if len(tokens) >= self.most_tokens:
            self._cut.add(example.id)
        return [*tokens[: self.most_tokens - 1], self.end]

    def logits(self, model: nn.Module, batch: WhisperBatch) -> Tensor:
        """Return [P, V] float32 logits, one row per token of the transcripts."""
        device = next(model.parameters()).device
        made: Any = model(**self.inputs(model, batch.clips), decoder_input_ids=batch.tokens.to(device), use_cache=False)
        return made.logits[batch.rows.to(device)].float()

    def targets(self, batch: WhisperBatch) -> Tensor:
        """Return [P] int64, the tokens of the transcripts, each with its end, or `UNLABELLED`."""
        return batch.targets

    def hear(self, model: nn.Module, examples: Sequence[SpeechExample]) -> list[str]:
        """Return the likeliest token after each other, until the end of the transcript or `most_tokens`."""
        made: Any = self.inputs(model, [self.reader.read(example.recording) for example in examples])
        device = next(model.parameters()).device
        state: Any = cast(Any, model).get_encoder()(**made)
        tokens = torch.tensor([self.prompt] * len(examples), device=device)
        past, done, new = None, torch.zeros(len(examples), dtype=torch.bool, device=device), tokens
        for _ in range(self.most_tokens):
            output: Any = model(encoder_outputs=state, decoder_input_ids=new, past_key_values=past, use_cache=True)
            past, new = output.past_key_values, output.logits[:, -1:].argmax(-1)
            new[done] = self.end
            tokens, done = torch.cat([tokens, new], dim=1), done | (new[:, 0] == self.end)
            if done.all():
                break
        return self.tokenizer.batch_decode(tokens[:, len(self.prompt) :].cpu(), skip_special_tokens=True)

    def facts(self) -> dict[str, Any]:
        """Return the duration of the longest clip, the names of the prompt's tokens, and the most tokens."""
        prompt: list[str] = self.tokenizer.convert_ids_to_tokens(self.prompt)
        return super().facts() | {"prompt": prompt, "most_tokens": self.most_tokens}

    def notes(self) -> list[str]:
        """Return what was changed of recordings and transcripts."""
        cut = [f"transcripts of more than {self.most_tokens} tokens, which are cut off there: {len(self._cut)}"]
        return super().notes() + cut * bool(self._cut)


def _positions(source: str) -> int:
    """Return the number of tokens that a model's decoder reads at most."""
    return int(from_pretrained(transformers_class("AutoConfig"), source, _ADVICE).max_target_positions)


def known_tokens(source: str) -> Mapping[str, int]:
    """Return the tokens of a Whisper model and their columns.

    Raises:
        UserError: the source has no tokenizer.
    """
    return from_pretrained(transformers_class("WhisperTokenizer"), source, _ADVICE).get_vocab()


def language_prompt(language: str | None, source: str) -> tuple[str, ...]:
    """Return the tokens that tell a multilingual Whisper to write down what is said in a language, without times.

    Args:
        language: the language's code, such as en; None for no tokens, so that those of the tokenizer's files are used.
        source: directory or hub id of the model.

    Raises:
        UserError: the model has no such language.
    """
    if language is None:
        return ()
    tokens = ("<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>")
    known = known_tokens(source)
    if not all(token in known for token in tokens):
        raise UserError(
            f"task.format.language: {source!r} has no language {language!r}. Give its code, such as en, or set "
            "task.format.language: null."
        )
    return tokens
