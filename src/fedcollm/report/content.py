"""The words of a report: headline, key numbers, method, and the differences between configurations."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fedcollm.config import RunConfig
from fedcollm.config.roles import PARTS, ROLES
from fedcollm.config.words import facts_in_words, settings_in_words, start_in_words
from fedcollm.report.formats import byte_count, count, duration, metric_title, percent, share
from fedcollm.report.runs import Method, described
from fedcollm.report.scores import FEWEST_SEEDS, curve, finals, interval, role_scores, sampling_half_width
from fedcollm.report.tables import Summary, Table

#: The roles with a score of their own.
_SUBJECTS = tuple(role for role, names in ROLES.items() if names.subject)

METHOD = (
    "In every round, the server sends the small model’s adapter θ to the clients, each client fine-tunes it on its own "
    "private examples, and the server averages the adapters that come back. The examples never leave a client. "
    "The server then distills its large model and the averaged small model into each other on a public set: each "
    "model minimizes its cross-entropy plus λτ² times the Kullback–Leibler divergence from the other’s predictions. "
    "Thus the clients learn from the large model, and the large model learns from what the clients have learned, while "
    "only an adapter travels (FedCoLLM: Fan et al. 2024, arXiv 2411.11707, Algorithm 1)."
)


CONTROL_METHOD = (
    "Nothing is trained. The server asks every client once for two matrices, the second moments of the features of its "
    "private examples and the products of features and labels, and adds those of the labelled public examples. From "
    "these sums follows ridge regression on the examples of all parties, in closed form. The examples never leave a "
    "client."
)


@dataclass(frozen=True)
class Tile:
    """One key number of a run.

    Attributes:
        label: name of the number.
        value: the number with its unit.
        note: a remark on the number.
        spread: half-width of its 95% interval over seeds; empty with one seed.
    """

    label: str
    value: str
    note: str = ""
    spread: str = ""


#: Main metric to what it says, in a sentence.
_METRICS = {
    "accuracy": "Share of test examples answered correctly.",
    "exact match": "Share of test examples whose generated answer is the right one, after both are normalized.",
    "word accuracy": "Share of the words of the transcripts that were recognized.",
    "ap50": "Mean over images of the average precision of the boxes found, at an IoU of 0.5.",
}


def metric_sentence(metric: str) -> str:
    """Return what a metric says."""
    return _METRICS.get(metric, f"{metric_title(metric)} on the test examples.")


def headline(method: Method, numbers: Summary) -> str:
    """Return in one sentence how the scores of both models changed, or what a control reached."""
    changes: list[str] = []
    for role in _SUBJECTS:
        subject = ROLES[role].subject
        values, points = finals(method, role), curve(method, role)
        if not values:
            continue
        last = percent(interval(list(values.values()))[0])
        if numbers.rounds_done == 0:
            changes.append(f"{subject} is at {last}")
        elif points and points[0].round == 0:
            changes.append(f"{subject} went from {percent(points[0].mean)} to {last}")
        else:
            changes.append(f"{subject} reached {last}")
    if not changes:
        return f"{rounds_text(numbers)} finished, none of them scored."
    start = f"After {rounds_text(numbers)}, " if numbers.rounds_done else "Before any training, "
    metric = method.runs[0].metric
    return f"{start}{f' {metric}, and '.join(changes)}{f' {metric}' if len(changes) == 1 else ''}."


def rounds_text(numbers: Summary) -> str:
    """Return the number of finished rounds; if the run is not complete, with the number of planned rounds."""
    noun = "round" if max(numbers.rounds_done, numbers.rounds_planned) == 1 else "rounds"
    if numbers.rounds_done >= numbers.rounds_planned:
        return f"{numbers.rounds_done} {noun}"
    return f"{numbers.rounds_done} of {numbers.rounds_planned} {noun}"


def tiles(method: Method, numbers: Summary) -> list[Tile]:
    """Return the key numbers: the scores over all seeds, and the costs of the first run."""
    known = [(role, finals(method, role)) for role in ROLES]
    result: list[Tile] = []
    for role, values in known:
        if values:
            mean, half = interval(list(values.values()))
            spread = "" if half is None else f"± {100 * half:.1f}"
            result.append(Tile(ROLES[role].label, percent(mean), _score_note(method, role), spread))
    if numbers.bytes_up and method.federated:
        note, part = "by each client", numbers.adapter_share
        if part is not None:
            note += f": {share(part)} of the small model’s parameters"
        result.append(Tile("Sent per round", byte_count(numbers.bytes_up), note))
    spent = {label: numbers.seconds[part] for part, label in PARTS.items() if numbers.seconds.get(part)}
    note = ", ".join(f"{label.lower()} {duration(seconds)}" for label, seconds in spent.items())
    if spent:
        result.append(Tile("Time", duration(math.fsum(numbers.seconds.values())), note))
    if numbers.peak_memory_bytes:
        result.append(Tile("Peak memory", byte_count(numbers.peak_memory_bytes), "of the process that ran it"))
    return result


def _score_note(method: Method, role: str) -> str:
    points = curve(method, role)
    notes: list[str] = []
    if points and points[0].round == 0 and len(points) > 1:
        notes.append(f"from {percent(points[0].mean)} {start_in_words(method.runs[0].config)}")
    if role == "clients":
        notes.append("after local tuning")
    if len(method.by_seed) > 1:
        few = len(method.by_seed) < FEWEST_SEEDS
        notes.append(f"{'mean' if few else '95% interval'} over {len(method.by_seed)} seeds")
    elif len(method.runs) == 1:
        scores = role_scores(method.runs[0].records, role)
        if scores.best_round != scores.final_round:
            notes.append(f"best {percent(scores.best)} in round {scores.best_round}")
    return ", ".join(notes)


def caution(method: Method) -> str:
    """Return a sentence on the uncertainty that the size of the test set alone leaves; empty if nothing was scored."""
    examples = method.runs[0].data.get("test")
    none: list[float] = []
    values = next((list(values.values()) for role in _SUBJECTS if (values := finals(method, role))), none)
    if not examples or not values or not 0 <= (value := interval(values)[0]) <= 1:
        return ""
    half = 100 * sampling_half_width(value, examples)
    return (
        f"Scored on {count(examples)} test examples, which alone leaves ±{half:.1f} points (95% interval) "
        f"around {percent(value)}."
    )


def settings(config: RunConfig) -> str:
    """Return the main settings of a run, and its changes to the method that `METHOD` describes."""
    changes = settings_in_words(config)
    words = f"In this run: {'; '.join(facts_in_words(config))}."
    return words + (f" Changes to the method described above: {'; '.join(changes)}." if changes else "")


def explained(methods: Sequence[Method]) -> list[tuple[str, str]]:
    """Return the names of the compared methods with their descriptions; the user's own methods are left out."""
    return [(method.label, f"{method.name}: {words}") for method in methods if (words := described(method.name))]


def differences(methods: Sequence[Method]) -> Table:
    """Return the keys of the configuration that differ between the first runs of the methods."""
    configs = [dict(_flat(method.runs[0].config.model_dump(mode="json"))) for method in methods]
    keys = [key for key in configs[0] if any(config.get(key) != configs[0][key] for config in configs[1:])]
    keys += [key for key in dict.fromkeys(key for config in configs for key in config) if key not in configs[0]]
    rows = [(key, *(str(config.get(key, "–")) for config in configs)) for key in keys]
    return Table(
        "Configuration, where methods differ (first run of each)", ("Key", *(method.label for method in methods)), rows
    )


def environment_table(environment: dict[str, Any]) -> Table:
    """Return all values of the environment by their dotted paths."""
    rows = [
        (key, count(value) if isinstance(value, int) and value > 9999 else str(value))
        for key, value in _flat(environment)
    ]
    return Table("Environment of the run", ("Key", "Value"), rows)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings, each with its dotted path."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(cast(dict[str, Any], value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
