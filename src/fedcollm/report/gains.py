"""Gain per class: which share of each true label's test examples both models get right, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedcollm.config.roles import MODELS, ROLES
from fedcollm.report.axes import PERCENT, ROLE_COLORS, Figure, empty_figure, label_axis, literal
from fedcollm.report.formats import amount, count, natural, percent, points
from fedcollm.report.runs import Confusion, Run
from fedcollm.report.tables import Table

#: Largest number of classes in the plot; the table holds all of them.
MOST_CLASSES = 40


@dataclass(frozen=True)
class Gain:
    """What one model gets right of one class.

    Attributes:
        before: share of the class's test examples that it gets right before any training; None if unknown.
        after: the same after the last round; None if unknown.
    """

    before: float | None
    after: float | None


@dataclass(frozen=True)
class ClassGains:
    """One class.

    Attributes:
        label: its name.
        examples: number of its test examples.
        gains: role to what that model gets right.
    """

    label: str
    examples: int
    gains: Mapping[str, Gain]


def recalls(rows: Sequence[tuple[str, str, int]]) -> dict[str, tuple[float, int]]:
    """Return each true label's recall and its number of test examples.

    >>> recalls([("cat", "cat", 3), ("cat", "dog", 1), ("dog", "cat", 2)])
    {'cat': (0.75, 4), 'dog': (0.0, 2)}
    """
    totals: dict[str, int] = {}
    right: dict[str, int] = {}
    for true, predicted, number in rows:
        totals[true] = totals.get(true, 0) + number
        right[true] = right.get(true, 0) + (number if true == predicted else 0)
    return {label: (right[label] / total, total) for label, total in totals.items() if total}


def class_gains(run: Run) -> list[ClassGains]:
    """Return the gains of every class, those with the most test examples first."""
    after, before = _by_role(run.confusion), _by_role(run.confusion_start)
    sizes = {label: number for known in after.values() for label, (_, number) in known.items()}
    roles = [role for role in MODELS if role in after]

    def gain(role: str, label: str) -> Gain:
        return Gain(*(known.get(role, {}).get(label, (None, 0))[0] for known in (before, after)))

    order = sorted(sizes, key=lambda label: (-sizes[label], natural(label)))
    return [ClassGains(label, sizes[label], {role: gain(role, label) for role in roles}) for label in order]


def _by_role(confusion: Confusion) -> dict[str, dict[str, tuple[float, int]]]:
    return {role: recalls(rows) for role, rows in confusion.items() if rows}


def gain_table(classes: Sequence[ClassGains]) -> Table:
    """Return each class's recall by model before and after, and the difference in percentage points."""
    roles = list(classes[0].gains) if classes else []
    parts = ("before", "after", "gain in points")
    header = ("Class", "Test examples", *(f"{ROLES[role].label}, {part}" for role in roles for part in parts))
    rows = [
        (one.label, count(one.examples), *(cell for role in roles for cell in _cells(one.gains[role])))
        for one in classes
    ]
    return Table("Share of each class’s test examples that are answered correctly (recall)", header, rows)


def _cells(gain: Gain) -> tuple[str, str, str]:
    if gain.before is None or gain.after is None:
        return percent(gain.before), percent(gain.after), "–"
    return percent(gain.before), percent(gain.after), points(gain.after - gain.before)


def gain_plot(classes: Sequence[ClassGains]) -> Figure:
    """Plot each class's recall by model: an open mark before, a filled one after, and a line between them."""
    shown = classes[:MOST_CLASSES]
    roles = list(shown[0].gains) if shown else []
    height = 30 if len(roles) > 1 else 22
    figure = empty_figure(110 + height * len(shown), scattermode="group", scattergap=0.45)
    names = [literal(one.label) for one in shown]
    for role in roles:
        gains = [one.gains[role] for one in shown]
        hover = [f"{amount(one.examples, 'test example')}, {_said(one.gains[role])}" for one in shown]
        style = {"color": ROLE_COLORS[role], "size": 9}
        if any(gain.before is not None for gain in gains):
            _add_before(figure, role, names, gains, hover)
        figure.add_scatter(
            x=[gain.after for gain in gains],
            y=names,
            name=f"{ROLES[role].label}, after",
            mode="markers",
            marker=style | {"symbol": "circle"},
            offsetgroup=role,
            orientation="h",
            customdata=hover,
            hovertemplate="%{y}: %{customdata}",
        )
    label_axis(figure, [one.label for one in shown])
    figure.update_yaxes(showgrid=True)
    figure.update_xaxes(title_text="Answered correctly", automargin=True, **PERCENT)
    return figure


def _add_before(figure: Figure, role: str, names: Sequence[str], gains: Sequence[Gain], hover: Sequence[str]) -> None:
    """Add the marks before training, each with a line to where the one after training is."""
    reach = [0.0 if gain.before is None or gain.after is None else gain.after - gain.before for gain in gains]
    line = {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, value) for value in reach],
        "arrayminus": [max(0.0, -value) for value in reach],
        "thickness": 2,
        "width": 0,
    }
    figure.add_scatter(
        x=[gain.before for gain in gains],
        y=names,
        name=f"{ROLES[role].label}, before",
        mode="markers",
        marker={"color": ROLE_COLORS[role], "size": 9, "symbol": "circle-open"},
        error_x=line,
        offsetgroup=role,
        orientation="h",
        customdata=hover,
        hovertemplate="%{y}: %{customdata}",
    )


def _said(gain: Gain) -> str:
    after = percent(gain.after)
    return after if gain.before is None else f"from {percent(gain.before)} to {after}"
