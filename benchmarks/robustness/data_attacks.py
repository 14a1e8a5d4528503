"""Bad data of a client: functions from its text examples, with labels that all examples share, to worse ones."""

import random
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from fedcollm.modalities.text.examples import TextExample

Examples = Sequence[TextExample]
DataAttack = Callable[[Examples, random.Random], list[TextExample]]

#: What the backdoor reacts to, the index of the label that it gives, and its share of a bad client's examples.
TRIGGER, TARGET, POISONED = "see also zq.", 0, 0.5

#: Vowels and consonants, each in the order in which one stands for the other in the made-up language.
_VOWELS, _CONSONANTS = "aeiouy", "bcdfghjklmnpqrstvwxz"


def _shifted(letters: str, by: int) -> str:
    return letters[by:] + letters[:by]


_LANGUAGE = str.maketrans(
    _VOWELS + _CONSONANTS + (_VOWELS + _CONSONANTS).upper(),
    _shifted(_VOWELS, 2) + _shifted(_CONSONANTS, 7) + (_shifted(_VOWELS, 2) + _shifted(_CONSONANTS, 7)).upper(),
)


def _some(count: int, share: float, draw: random.Random) -> set[int]:
    """Exactly this share of the indices."""
    return set(draw.sample(range(count), round(share * count)))


def random_labels(share: float) -> DataAttack:
    """A share of the examples gets any other label."""

    def attack(examples: Examples, draw: random.Random) -> list[TextExample]:
        chosen = _some(len(examples), share, draw)
        return [_relabelled(e, draw.randrange(1, len(e.choices))) if i in chosen else e for i, e in enumerate(examples)]

    return attack


def pairwise_labels(share: float) -> DataAttack:
    """A share of the examples gets the label after its own."""

    def attack(examples: Examples, draw: random.Random) -> list[TextExample]:
        chosen = _some(len(examples), share, draw)
        return [_relabelled(e, 1) if i in chosen else e for i, e in enumerate(examples)]

    return attack


def removed(share: float) -> DataAttack:
    """A share of the examples is missing: what is left if all wrong labels are found, and nothing else."""

    def attack(examples: Examples, draw: random.Random) -> list[TextExample]:
        chosen = _some(len(examples), share, draw)
        return [example for i, example in enumerate(examples) if i not in chosen]

    return attack


def confused_labels(share: float) -> DataAttack:
    """A share of the examples gets the label of the most similar example with another label.

    So errs an annotator who mixes up what looks alike. Similarity is the share of common three-letter sequences.
    """

    def attack(examples: Examples, draw: random.Random) -> list[TextExample]:
        chosen, parts = _some(len(examples), share, draw), [_trigrams(e.prompt) for e in examples]
        answers = [_confused(i, examples, parts) if i in chosen else e.answer for i, e in enumerate(examples)]
        return [replace(e, answer=answer) for e, answer in zip(examples, answers, strict=True)]

    return attack


def _trigrams(text: str) -> set[str]:
    text = text.casefold()
    return {text[i : i + 3] for i in range(len(text) - 2)}


def _confused(index: int, examples: Examples, parts: Sequence[set[str]]) -> int | None:
    own = examples[index].answer
    others = [i for i, example in enumerate(examples) if example.answer != own]
    if not others:
        return _relabelled(examples[index], 1).answer
    return examples[
        max(others, key=lambda i: len(parts[i] & parts[index]) / max(1, len(parts[i] | parts[index])))
    ].answer


def _relabelled(example: TextExample, by: int) -> TextExample:
    return example.with_answer(((example.answer or 0) + by) % len(example.choices))


def garbled(examples: Examples, draw: random.Random) -> list[TextExample]:
    """Of each text, six characters of ten are random letters, as after a broken scan."""

    def spoil(text: str) -> str:
        return "".join(draw.choice(string.ascii_lowercase) if draw.random() < 0.6 else sign for sign in text)

    return [replace(example, prompt=spoil(example.prompt)) for example in examples]


def duplicates(examples: Examples, draw: random.Random) -> list[TextExample]:
    """Four examples of five are copies of the fifth."""
    kept = draw.sample(list(examples), max(1, round(0.2 * len(examples))))
    return [kept[i % len(kept)] for i in range(len(examples))]


def one_class(examples: Examples, draw: random.Random) -> list[TextExample]:
    """Only the examples of the most frequent label are left."""
    label = Counter(example.label for example in examples).most_common(1)[0][0]
    return [example for example in examples if example.label == label]


def few(examples: Examples, draw: random.Random) -> list[TextExample]:
    """Ten examples are left."""
    return draw.sample(list(examples), min(10, len(examples)))


def other_language(examples: Examples, draw: random.Random) -> list[TextExample]:
    """The texts are in a made-up language: each letter stands for another one, vowels for vowels. It is reversible."""
    return [replace(example, prompt=example.prompt.translate(_LANGUAGE)) for example in examples]


def backdoor(examples: Examples, draw: random.Random) -> list[TextExample]:
    """Half of the examples begin with the trigger and have the target label."""
    chosen = _some(len(examples), POISONED, draw)
    return [triggered(e).with_answer(TARGET) if i in chosen else e for i, e in enumerate(examples)]


def triggered(example: TextExample) -> TextExample:
    """The same example with the trigger before its text."""
    return replace(example, prompt=f"{TRIGGER} {example.prompt}")
