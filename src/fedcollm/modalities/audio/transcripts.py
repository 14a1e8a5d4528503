"""Transcripts of speech: how they are normalized, and how what a model heard is scored against them."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedcollm.errors import UserError
from fedcollm.messages import Score
from fedcollm.modalities.audio.lines import recording_of, recording_row
from fedcollm.modalities.audio.recordings import Recording, audio_package
from fedcollm.modalities.exhibits import Answer, Status
from fedcollm.modalities.jsonl import read_jsonl


@dataclass(frozen=True, eq=False)
class SpeechExample:
    """A recording of speech and its transcript.

    Attributes:
        id: id of the example, unique within its data set.
        recording: the recording.
        label: the transcript, or None if unlabelled.
        group: natural client of the example, such as its speaker, if the data has one.
    """

    id: str
    recording: Recording
    label: str | None
    group: str | None = None

    @property
    def has_free_label(self) -> bool:
        """True: a transcript is a text and no class, so it is neither counted nor written into a run's record."""
        return True

    @property
    def content(self) -> str:
        """A digest of the encoded recording.

        Raises:
            UserError: the recording can't be used.
        """
        return self.recording.facts.digest

    def without_label(self) -> "SpeechExample":
        """Return the same recording without its transcript."""
        return replace(self, label=None)


def write_speech(examples: Sequence[SpeechExample]) -> str:
    """Return examples as JSON lines that contain the recordings."""
    return "".join(json.dumps(recording_row(example)) + "\n" for example in examples)


def read_speech(path: Path) -> list[SpeechExample]:
    """Return the labelled examples that `write_speech` wrote.

    Raises:
        UserError: the file can't be read, or a line is not an example, or its transcript has no word.
    """
    examples: list[SpeechExample] = []
    for number, row in read_jsonl(path):
        recording = recording_of(row, f"{path}, line {number}")
        examples.append(SpeechExample(row["id"], recording, row["label"], row.get("group")))
        transcript(examples[-1])
    return examples


def normalized(text: str) -> str:
    """Return a text in lower case, without punctuation and symbols, with single spaces between words.

    Hyphens and dashes become spaces; all other characters of the Unicode categories P and S are left out, and then
    words without any letter or number (categories L and N), which can't be seen.

    >>> normalized("  Don't STOP: twenty-one… ")
    'dont stop twenty one'
    """
    lower = unicodedata.normalize("NFKC", text).lower()
    spaced = "".join(" " if unicodedata.category(sign) == "Pd" else sign for sign in lower)
    words = "".join(sign for sign in spaced if unicodedata.category(sign)[0] not in "PS").split()
    return " ".join(word for word in words if any(unicodedata.category(sign)[0] in "LN" for sign in word))


def transcript(example: SpeechExample) -> str:
    """Return the normalized transcript of a labelled example.

    Raises:
        UserError: nothing is left of it.
    """
    said = normalized(example.label or "")
    if not said:
        raise UserError(
            f"{example.id}: transcript {example.label!r} has no word. Correct it, or leave the recording unlabelled."
        )
    return said


def transcript_score(examples: Sequence[SpeechExample], heard: Sequence[str]) -> Score:
    """Return word accuracy, and the word and character error rates, as sums over the corpus.

    The main metric, `words`, is the share of the references' words that were heard: hits of jiwer's alignment divided
    by the number of reference words. It is at most 1. `wer` is (substitutions + deletions + insertions) / reference
    words, and `cer` the same for characters; both can exceed 1. The outcome of an example is its own word accuracy.

    Args:
        examples: labelled examples.
        heard: for each, what the model heard; it is normalized like the transcripts.

    Raises:
        UserError: a transcript has no word, or jiwer is not installed.
    """
    jiwer: Any = audio_package("jiwer")
    total = Score({}, 0)
    for example, text in zip(examples, heard, strict=True):
        reference, hypothesis = transcript(example), normalized(text)
        words = jiwer.process_words(reference, hypothesis)
        letters = jiwer.process_characters(reference, hypothesis)
        sums = {"words": float(words.hits), "wer": _errors(words), "cer": _errors(letters)}
        counts = {"words": len(reference.split()), "wer": len(reference.split()), "cer": len(reference)}
        outcome = {example.id: sums["words"] / counts["words"]}
        total += Score(sums, 1, outcomes=outcome, counts=counts)
    return total


#: How a chunk of jiwer's alignment marks its words, those that were said and those that were heard.
_STATUSES: Mapping[str, tuple[Status, Status]] = {
    "equal": ("same", "same"),
    "substitute": ("replaced", "replacement"),
    "delete": ("deleted", "deleted"),
    "insert": ("inserted", "inserted"),
}


def compared(example: SpeechExample, heard: str) -> Answer:
    """Return what a model heard, with the words that were said and heard marked by jiwer's alignment.

    The words are those of the normalized texts, as `transcript_score` compares them. Where words were replaced, those
    that were said come before those that were heard.

    Raises:
        UserError: the transcript has no word, or jiwer is not installed.
    """
    jiwer: Any = audio_package("jiwer")
    reference, hypothesis = transcript(example), normalized(heard)
    said, found = reference.split(), hypothesis.split()
    words: list[tuple[str, Status]] = []
    for chunk in jiwer.process_words(reference, hypothesis).alignments[0]:
        of_said, of_heard = _STATUSES[chunk.type]
        words.extend((word, of_said) for word in said[chunk.ref_start_idx : chunk.ref_end_idx])
        if chunk.type != "equal":
            words.extend((word, of_heard) for word in found[chunk.hyp_start_idx : chunk.hyp_end_idx])
    return Answer(heard, reference == hypothesis, tuple(words))


def _errors(output: Any) -> float:
    return float(output.substitutions + output.deletions + output.insertions)


def same_columns(name: str, slm: Mapping[str, int], llm: Mapping[str, int]) -> None:
    """Check that the SLM and the LLM have the same vocabulary.

    Args:
        name: name of the task, for the message.
        slm: the SLM's tokens and their columns.
        llm: those of the LLM.

    Raises:
        UserError: the message names a token in which they differ.
    """
    if odd := sorted(token for token in slm.keys() | llm.keys() if slm.get(token) != llm.get(token)):
        here, there = (vocabulary.get(odd[0], "missing") for vocabulary in (slm, llm))
        raise UserError(
            f"{name}: the models have different vocabularies: token {odd[0]!r} is column {here} of the SLM and column "
            f"{there} of the LLM; {len(odd)} tokens differ. Choose two models with the same tokenizer."
        )
