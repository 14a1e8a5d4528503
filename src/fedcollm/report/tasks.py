"""Several tasks on one page: an overview, and which methods are about the first task."""

import math
from collections.abc import Sequence
from pathlib import Path

from fedcollm.config.roles import MODELS, ROLES
from fedcollm.report.axes import ROLE_COLORS, Figure, clipped, empty_figure, label_axis, literal, share_limits
from fedcollm.report.compared import Compared, found_in
from fedcollm.report.formats import percent, points
from fedcollm.report.heading import task_name
from fedcollm.report.runs import Method
from fedcollm.report.scores import Point, curve, finals, point_of
from fedcollm.report.tables import Table


def of_first_task(methods: Sequence[Method]) -> list[Method]:
    """Return the methods that are about the task of the first one: scores on different tasks can't be compared."""
    return [method for method in methods if _task(method) == _task(methods[0])]


def _task(method: Method) -> tuple[str, str]:
    task = method.runs[0].config.task
    return task.name, str(task.path)


def several(methods: Sequence[Method]) -> bool:
    """Return whether the methods are about more than one task."""
    return len({_task(method) for method in methods}) > 1


def overview(methods: Sequence[Method]) -> Table:
    """Return both models' scores before and after, by task and method."""
    header = ("Task", "Method", *(f"{ROLES[r].label}, {part}" for r in MODELS for part in ("before", "after", "gain")))
    rows: list[tuple[str, ...]] = []
    for method in sorted(methods, key=lambda one: task_name(one.runs[0])):
        cells = [cell for role in MODELS for cell in _cells(method, role)]
        rows.append((task_name(method.runs[0]), method.label, *cells))
    return Table("Scores by task: before training, after the last round, and the gain in points", header, rows)


def _cells(method: Method, role: str) -> tuple[str, str, str]:
    before, after = _ends(method, role)
    gain = points(after.mean - before.mean) if before and after else "–"
    said = percent(after.mean, after.half_width) if after else "–"
    return percent(before.mean if before else None), said, gain


def _ends(method: Method, role: str) -> tuple[Point | None, Point | None]:
    """Return the scores before training and after the last round."""
    first, values = curve(method, role)[:1], list(finals(method, role).values())
    before = first[0] if first and first[0].round == 0 else None
    return before, point_of(0, values) if values else None


def overview_plot(methods: Sequence[Method]) -> Figure:
    """Plot both models' final scores by task and method, with an open mark for those before training."""
    ordered = sorted(methods, key=lambda one: task_name(one.runs[0]))
    names = [f"{task_name(method.runs[0])} · {method.label}" for method in ordered]
    figure, seen = empty_figure(130 + 34 * len(names), scattermode="group", scattergap=0.5), list[float]()
    for role in MODELS:
        for index, (part, symbol) in enumerate((("before", "circle-open"), ("after", "circle"))):
            found = [(name, _ends(method, role)[index]) for name, method in zip(names, ordered, strict=True)]
            known = [(name, point) for name, point in found if point is not None]
            seen += [end for _, point in known for end in clipped(point.mean, 0)]
            if not known:
                continue
            figure.add_scatter(
                x=[point.mean for _, point in known],
                y=[literal(name) for name, _ in known],
                name=f"{ROLES[role].label}, {part}",
                mode="markers",
                marker={"color": ROLE_COLORS[role], "size": 9, "symbol": symbol},
                offsetgroup=role,
                orientation="h",
                customdata=[percent(point.mean, point.half_width) for _, point in known],
                hovertemplate="%{y}: %{customdata}",
            )
    label_axis(figure, names, 60)
    shown = [literal(name) for name in names]
    figure.update_yaxes(showgrid=True, categoryorder="array", categoryarray=shown)
    figure.update_xaxes(title_text="Score", automargin=True, **share_limits([v for v in seen if math.isfinite(v)]))
    return figure


def comparisons(directories: Sequence[Path]) -> list[Compared]:
    """Return the comparison of each task that stands in these directories, or one level below."""
    found: dict[Path, Compared] = {}
    for directory in directories:
        for place in (directory, *sorted(path for path in directory.iterdir() if path.is_dir())):
            if (compared := found_in(place)) is not None:
                found.setdefault(place.resolve(), compared)
    return list(found.values())
