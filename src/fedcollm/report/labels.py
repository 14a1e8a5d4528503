"""Labels of examples: their order, how many examples of each a party holds, and how models confuse them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedcollm.report.federation import client_name
from fedcollm.report.formats import count, natural, percent
from fedcollm.report.tables import Table

PUBLIC = "public part"
#: Further counts of `data.json`, in words.
FACTS = {
    "unlabelled": "unlabelled public examples",
    "test": "test examples",
    "duplicates_removed": "duplicates removed",
}


def parts(data: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return the number of examples of each label by part of the training data: the clients, then the public part."""
    held: Mapping[str, Mapping[str, int]] = data.get("clients", {})
    names = {name: client_name(name) for name in held}
    if len({*names.values(), PUBLIC}) <= len(held):  # two names look alike
        names = {name: f"client {name}" for name in held}
    clients = {names[name]: dict(counts) for name, counts in held.items()}
    return clients | ({PUBLIC: dict(data["public"])} if data.get("public") else {})


def label_order(split: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return every label of a split once, in natural order."""
    return sorted({label for counts in split.values() for label in counts}, key=natural)


def folded(split: Mapping[str, Mapping[str, int]], limit: int = 40) -> dict[str, dict[str, int]]:
    """Return the split with all labels except the most frequent ones merged into one, which sorts last.

    >>> folded({"a": {"x": 3, "y": 1, "z": 1}}, limit=2)
    {'a': {'x': 3, '… 2 more labels': 2}}
    """
    labels = label_order(split)
    if len(labels) <= limit:
        return {part: dict(counts) for part, counts in split.items()}
    kept = set(sorted(labels, key=lambda label: -sum(counts.get(label, 0) for counts in split.values()))[: limit - 1])
    other = f"… {len(labels) - len(kept)} more labels"
    result: dict[str, dict[str, int]] = {}
    for part, counts in split.items():
        result[part] = {label: number for label, number in counts.items() if label in kept}
        result[part][other] = sum(number for label, number in counts.items() if label not in kept)
    return result


def confusion_labels(rows: Iterable[tuple[str, str, int]]) -> list[str]:
    """Return every label of a confusion table once, in natural order."""
    return sorted({label for true, predicted, _ in rows for label in (true, predicted)}, key=natural)


def data_table(split: Mapping[str, Mapping[str, int]]) -> Table:
    """Return the number of examples by label and part, with totals."""
    rows: list[tuple[str, ...]] = []
    for label in label_order(split):
        numbers = [counts.get(label, 0) for counts in split.values()]
        rows.append((label, *(count(number) for number in (*numbers, sum(numbers)))))
    totals = [sum(counts.values()) for counts in split.values()]
    rows.append(("All labels", *(count(number) for number in (*totals, sum(totals)))))
    return Table("Training examples by label and part", ("Label", *split, "Total"), rows)


def count_table(counts: Mapping[str, int], what: str) -> Table:
    """Return the number and the share of examples by name."""
    total = max(1, sum(counts.values()))
    rows: list[tuple[str, ...]] = [(name, count(number), percent(number / total)) for name, number in counts.items()]
    return Table(f"{what} of the clients’ examples", (what, "Examples", "Share"), rows)


def confusion_table(rows: Sequence[tuple[str, str, int]], labels: Sequence[str], role: str) -> Table:
    """Return each true label with its examples, the share classified correctly, and its most frequent mistake."""
    body: list[tuple[str, ...]] = []
    for label in labels:
        predicted = {p: n for t, p, n in rows if t == label and n}
        total = sum(predicted.values())
        if not total:
            continue
        wrong = {p: n for p, n in predicted.items() if p != label}
        taken = max(wrong, key=lambda p: wrong[p]) if wrong else None
        mistake = f"{taken} ({count(wrong[taken])})" if taken is not None else "–"
        body.append((label, count(total), percent(predicted.get(label, 0) / total), mistake))
    return Table(
        f"Labels as the {role} predicts them",
        ("True label", "Test examples", "Correct", "Most often mistaken for"),
        body,
    )
