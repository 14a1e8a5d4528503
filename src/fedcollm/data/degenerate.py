"""Say what makes a split unfit to learn from or to score with, before anything is trained on it."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from fedcollm.data.pool import Split

#: Test sets with fewer examples are said to be small.
FEW_TEST_EXAMPLES = 10
#: Number of classes or pairs of classes that a sentence names.
_NAMED = 5


def degenerate_notes(split: Split) -> list[str]:
    """Return one sentence for each thing about a split from which little can be learnt, or scores that mean little.

    The label of an example is a class unless it says that its label is free text (`has_free_label`). An example that
    may have several classes, as an image with boxes, names them in `all_labels`.
    """
    few = len(split.test)
    notes: list[str] = []
    if 0 < few < FEW_TEST_EXAMPLES:
        notes.append(f"the test set has only {few} examples, so that one of them is {100 / few:.0f} % of a score")
    labelled = [example for example in split.public if example.label is not None]
    everyone = [*labelled, *split.test, *chain.from_iterable(split.private.values())]
    if any(getattr(example, "has_free_label", False) for example in everyone):
        return notes
    return [*notes, *_one_class(split, labelled, everyone), *_unseen(split, labelled), *_prefixes(everyone)]


def _one_class(split: Split, labelled: Sequence[Any], everyone: Sequence[Any]) -> Iterator[str]:
    """Yield which parts have one class only, unless the task has no more."""
    if len(_classes(everyone)) < 2:
        return
    for name, part in (("the labelled public part", labelled), ("the test set", split.test)):
        if len(found := _classes(part)) == 1:
            yield f"{name} has examples of one class only, {_named(found)}"
    clients = {client: _classes(part) for client, part in split.private.items()}
    if clients and all(len(found) == 1 for found in clients.values()):
        every = Counter(chain.from_iterable(clients.values()))
        whom = "the client has" if len(clients) == 1 else "each client has"
        yield f"{whom} examples of one class only ({_named(every)})"


def _unseen(split: Split, labelled: Sequence[Any]) -> Iterator[str]:
    """Yield the classes that the test set or the public part has, but no client; nothing if clients are elsewhere."""
    if not split.private:
        return
    held, public = _classes(chain.from_iterable(split.private.values())), _classes(labelled)
    tested = _classes(split.test)
    if never := {label: count for label, count in tested.items() if label not in held and label not in public}:
        yield (
            f"{_examples(sum(never.values()))} of the test set {_is(never)} of a class that neither a client nor the "
            f"public part has an example of: {_named(never)}"
        )
    if missing := [label for label in {**public, **tested} if label not in held and label not in never]:
        yield f"no client has an example of {_named(missing)}"


def _prefixes(everyone: Iterable[Any]) -> Iterator[str]:
    """Yield which shared choices begin another one: the sum of log-likelihoods of the longer one is never higher."""
    shared = (example.choices for example in everyone if getattr(example, "shares_labels", False))
    named, count = list[str](), 0
    before: list[str] = []  # each begins the next one, and the last one may begin the choice
    for choice in sorted(set(chain.from_iterable(set(shared)))):
        while before and not choice.startswith(before[-1]):
            before.pop()
        named += [f"{one!r:.40} begins {choice!r:.40}" for one in before[: _NAMED - len(named)]]
        count += len(before)
        before.append(choice)
    if named:
        more = f" and {count - _NAMED} more" if count > _NAMED else ""
        yield (
            f"a label begins another one ({', '.join(named)}{more}): by the sum of log-likelihoods the longer "
            "one can't be the likeliest where its tokens begin with those of the shorter one. Give them other names"
        )


def _classes(examples: Iterable[Any]) -> Counter[str]:
    """Return the number of examples of each class; those without a label don't count."""
    held = (getattr(example, "all_labels", (example.label,)) for example in examples if example.label is not None)
    return Counter(str(label) for labels in held for label in labels)


def _named(labels: Collection[str]) -> str:
    names = sorted(labels)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(f"{name!r:.60}" for name in names[:_NAMED]) + more


def _examples(count: int) -> str:
    return f"{count} example" + "s" * (count != 1)


def _is(counts: dict[str, int]) -> str:
    return "is" if sum(counts.values()) == 1 else "are"
