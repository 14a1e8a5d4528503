"""Clean the training examples of one client, as `task.cleaning` says, at the client.

The order is: mask personal data, drop duplicates, judge labels. All of it depends on the examples and the run's seed
alone, so that a simulated client, a deployed one and a resumed run train on the same examples.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedcollm.config import CleaningConfig, StatisticsConfig
from fedcollm.data.audit.duplicates import duplicate_texts
from fedcollm.data.audit.features import FEATURES, features
from fedcollm.data.audit.findings import Record, Subject
from fedcollm.data.audit.images import images
from fedcollm.data.audit.labels import FEWEST_EXAMPLES, Suspect, out_of_fold, suspects
from fedcollm.data.audit.personal import masked, spans
from fedcollm.data.audit.sounds import sounds
from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.examples import TextExample
from fedcollm.seeding import derive_seed

_NOWHERE = Path()  # examples are in memory

#: Kind of a client's data to what finds repeated examples; in other kinds, only equal ones are found.
_REPEATED = {"text": duplicate_texts, "image_files": images, "audio_files": sounds}


@dataclass(frozen=True)
class Cleaned:
    """The examples of a client after cleaning.

    Attributes:
        examples: the examples that are left, in their order.
        counts: what was done to the number of examples to which it was done.
    """

    examples: list[Any] = field(repr=False)
    counts: dict[str, int]

    def note(self, client: str) -> str | None:
        """Return what was done, in a sentence; None if nothing was."""
        done = ", ".join(f"{what}: {count}" for what, count in self.counts.items() if count)
        return f"client {client}: cleaning left {len(self.examples)} examples ({done})" if done else None


def cleaned(
    examples: Sequence[Any], settings: CleaningConfig, modality: Modality, slm: nn.Module | None, seed: int
) -> Cleaned:
    """Return the examples of one client after cleaning.

    Args:
        examples: its training examples.
        settings: what is done.
        modality: the modality of the SLM.
        slm: the SLM, for the judge `slm`.
        seed: the run's seed.

    Raises:
        UserError: a library is missing, labels are no classes, or nothing is left.
    """
    counts, left = Counter[str](), list(examples)
    if settings.personal == "mask":
        left = [_masked(example, counts) for example in left]
    if settings.duplicates != "keep":
        left = _without_repeated(left, near=settings.duplicates == "near", counts=counts)
    if settings.labels != "keep" and not settings.in_rounds:
        left = _with_better_labels(left, settings, modality, slm, seed, counts)
    if not left:
        raise UserError("task.cleaning left no example of a client. Set task.cleaning.labels: keep, or mend its data.")
    return Cleaned(left, dict(counts))


def _masked(example: Any, counts: Counter[str]) -> Any:
    """Return an example without personal data in its prompt, its conversation and its answer, if that is free text."""
    if not isinstance(example, TextExample):
        return example
    prompt = masked(example.prompt, spans(example.prompt))
    turns = tuple((role, masked(text, spans(text))) for role, text in example.turns)
    choices = example.choices
    if example.has_free_label:  # the answer is a text that the model learns to write
        choices = tuple(masked(text, spans(text)) for text in choices)
    if (prompt, turns, choices) == (example.prompt, example.turns, example.choices):
        return example
    counts["personal data masked"] += 1
    labels = choices if example.has_free_label else example.labels
    return replace(example, prompt=prompt, turns=turns, choices=choices, labels=labels)


def _subject(examples: Sequence[Any]) -> Subject:
    """Return examples as an audit sees them; of a kind of one's own, they have no text and no file."""
    records: list[Record] = []
    kind = "other"
    for i, example in enumerate(examples):
        text, source = "", None
        if isinstance(example, TextExample):
            own = () if example.shares_labels or example.has_free_label else example.choices
            kind, text = "text", "\n".join([example.text, *own])
        elif isinstance(example.content, str) and hasattr(example, "recording"):
            kind, source = "audio_files", example.recording.source
        elif hasattr(example, "source"):
            kind, source = "image_files", example.source
        records.append(Record(_NOWHERE, 0, f"example {i + 1}", text, example.label, {}, source))
    return Subject(kind, records, answer="answer")


def _without_repeated(examples: Sequence[Any], near: bool, counts: Counter[str]) -> list[Any]:
    """Return examples without those that repeat an earlier one with the same label; the earlier one stays.

    Equal examples with different labels: the most frequent label stays, and of equally frequent ones the first.
    """
    by_content: dict[str, list[int]] = {}
    for i, example in enumerate(examples):
        by_content.setdefault(example.content, []).append(i)
    kept: list[Any] = []
    for same in by_content.values():
        labels = Counter(str(examples[i].label) for i in same)
        usual = labels.most_common(1)[0][0]
        kept.append(next(examples[i] for i in same if str(examples[i].label) == usual))
        counts["contradicting duplicates dropped"] += len(same) - labels[usual]
        counts["duplicates dropped"] += labels[usual] - 1
    subject = _subject(kept)
    if not near or subject.kind not in _REPEATED:
        return kept
    found = _REPEATED[subject.kind](subject)
    drop = {one.record for one in found if one.kind in ("duplicate", "near_duplicate")}
    counts["near duplicates dropped"] += len(drop)
    return [example for i, example in enumerate(kept) if i not in drop]


@dataclass(frozen=True)
class Known:
    """The examples of a client whose labels can be judged.

    Attributes:
        places: their indices among all of its examples.
        codes: [N] int64, the index of each label among `classes`.
        classes: the labels that occur, sorted.
        donors: one example of each class, in the order of `classes`.
    """

    places: Sequence[int]
    codes: NDArray[np.int64] = field(repr=False)
    classes: Sequence[str]
    donors: Sequence[Any] = field(repr=False)

    def relabelled(self, example: Any, code: int) -> Any:
        """Return an example with another one of the classes as its label."""
        donor = self.donors[code]
        for name in ("answer", "target"):
            if hasattr(donor, name):
                return example.with_answer(getattr(donor, name))
        return example.with_answer(donor.classes.index(donor.label))

    def mended(self, examples: Sequence[Any], found: Sequence[Suspect], labels: str) -> list[Any]:
        """Return a client's examples without those whose label is suspected, or with the likelier label.

        Args:
            examples: all of its examples.
            found: the suspects among `codes`.
            labels: `drop` or `relabel`.
        """
        wrong = {self.places[one.position]: one.better for one in found}
        if labels == "drop":
            return [example for i, example in enumerate(examples) if i not in wrong]
        return [self.relabelled(one, wrong[i]) if i in wrong else one for i, one in enumerate(examples)]


def known_labels(examples: Sequence[Any]) -> Known | None:
    """Return the examples whose labels can be judged; None if there are too few of them, or only one class.

    Args:
        examples: all training examples of a client.

    Raises:
        UserError: labels are no classes that the examples share.
    """
    places = [i for i, example in enumerate(examples) if example.label is not None]
    some = [examples[i] for i in places]
    classes = sorted({str(example.label) for example in some})
    if len(some) < FEWEST_EXAMPLES or len(classes) < 2:
        return None
    _check_classes(some)
    donors = {str(example.label): example for example in some}
    codes = np.array([classes.index(str(example.label)) for example in some], dtype=np.int64)
    return Known(places, codes, classes, [donors[name] for name in classes])


def own_beliefs(
    known: Known, examples: Sequence[Any], modality: Modality, seed: int, judge: str = "ngrams", slm: Any = None
) -> NDArray[np.float64]:
    """Return how likely each class is for each example whose label is known, [N, C], out of fold.

    Args:
        known: the examples that are judged.
        examples: all training examples of the client.
        modality: the modality of the SLM.
        seed: the run's seed.
        judge: the kind of features.
        slm: the SLM, for features that need it.
    """
    rows = _rows([examples[i] for i in known.places], judge, modality, slm)
    return out_of_fold(rows, known.codes, len(known.classes), derive_seed(seed, "cleaning"))


def _with_better_labels(
    examples: Sequence[Any],
    settings: CleaningConfig,
    modality: Modality,
    slm: nn.Module | None,
    seed: int,
    counts: Counter[str],
) -> list[Any]:
    """Return examples without those whose label is probably wrong, or with the likelier label."""
    known = known_labels(examples)
    if known is None:
        return list(examples)
    beliefs = own_beliefs(known, examples, modality, seed, settings.judge, slm)
    found = suspects(known.codes, beliefs)
    counts[f"probably wrong labels {'dropped' if settings.labels == 'drop' else 'changed'}"] += len(found)
    return known.mended(examples, found, settings.labels)


def _check_classes(examples: Sequence[Any]) -> None:
    """Refuse examples whose labels are no classes that they share.

    Raises:
        UserError: names one.
    """
    for example in examples:
        if getattr(example, "has_free_label", False) or not getattr(example, "shares_labels", True):
            raise UserError(
                f"task.cleaning.labels: the choices of example {example.id!r} are its own, so that no model learns "
                "what each of them means. Set task.cleaning.labels: keep."
            )
        if not (hasattr(example, "with_answer") or isinstance(example, TextExample)):
            raise UserError(
                f"task.cleaning.labels needs {type(example).__name__}.with_answer, which is missing. Define it, or set "
                "task.cleaning.labels: keep."
            )


def _rows(examples: Sequence[Any], judge: str, modality: Modality, slm: nn.Module | None) -> Any:
    """Return the features of examples: [N, d]."""
    subject = _subject(examples)
    if judge == "ngrams" and subject.kind in FEATURES:
        return features(subject, range(len(examples)))
    found = modality.evidence(examples, StatisticsConfig(features=judge), slm)
    return found.rows.numpy().astype(np.float64)
