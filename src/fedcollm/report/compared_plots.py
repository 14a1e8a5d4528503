"""Plots of a comparison: a forest plot of paired differences, and the clients alone beside what they get together."""

import math
from collections.abc import Mapping, Sequence

from fedcollm.config.roles import MODELS, ROLES
from fedcollm.report.axes import (
    BLUE,
    GREY,
    PURPLE,
    ROLE_COLORS,
    Figure,
    empty_figure,
    error_bars,
    label_axis,
    literal,
    share_limits,
)
from fedcollm.report.compared import Compared, Row
from fedcollm.report.compared_tables import difference_cells
from fedcollm.report.federation import client_name
from fedcollm.report.formats import natural, percent, points
from fedcollm.report.runs import Method
from fedcollm.report.scores import finals, role_scores
from fedcollm.report.tables import Table


def forest_rows(compared: Compared, reference: str) -> list[Row]:
    """Return the rows of a comparison that have a paired difference from a reference."""
    return [row for row in compared.rows if any(reference in row.differences.get(role, {}) for role in MODELS)]


def forest_plot(compared: Compared, reference: str) -> Figure:
    """Plot each method's paired difference from a reference in points, with its 95% interval and a line at 0."""
    rows = forest_rows(compared, reference)
    figure = empty_figure(140 + 36 * len(rows), scattermode="group", scattergap=0.5)
    for role, symbol in zip(MODELS, ("circle", "diamond"), strict=True):
        found = [(row, row.differences[role][reference]) for row in rows if reference in row.differences.get(role, {})]
        if not found:
            continue
        means = [100 * one.mean for _, one in found]
        figure.add_scatter(
            x=means,
            y=[literal(row.name) for row, _ in found],
            error_x=error_bars(means, [(100 * one.low, 100 * one.high) for _, one in found]),
            name=ROLES[role].label,
            mode="markers",
            marker={"color": ROLE_COLORS[role], "size": 9, "symbol": symbol},
            offsetgroup=role,
            orientation="h",
            customdata=[difference_cells(one) for _, one in found],
            hovertemplate="%{y}: %{customdata}",
        )
    figure.add_vline(x=0, line={"width": 1.5, "color": GREY})
    label_axis(figure, [row.name for row in rows])
    names = [literal(row.name) for row in rows]
    figure.update_yaxes(categoryorder="array", categoryarray=names, showgrid=True)
    figure.update_xaxes(title_text="Difference in percentage points", automargin=True, zeroline=False)
    return figure


def forest_table(compared: Compared, reference: str) -> Table:
    """Return the differences that the plot shows."""
    rows = forest_rows(compared, reference)
    cells = [
        (row.name, *(difference_cells(row.differences.get(role, {}).get(reference)) for role in MODELS)) for row in rows
    ]
    caption = "Differences in percentage points on the same test examples [95% interval], p by the paired bootstrap"
    return Table(caption, ("Method", *(ROLES[role].label for role in MODELS)), cells)


def alone(methods: Sequence[Method]) -> dict[str, float]:
    """Return client id to the mean over seeds of its score after training alone; empty without standalone runs."""
    scores: dict[str, list[float]] = {}
    for run in (run for method in methods if method.name == "standalone" for run in method.runs):
        final = role_scores(run.records, "slm").final
        if run.directory.name.startswith("client-") and final is not None:
            scores.setdefault(run.directory.name.removeprefix("client-"), []).append(final)
    return {
        name: math.fsum(values) / len(values) for name, values in sorted(scores.items(), key=lambda x: natural(x[0]))
    }


def together(method: Method) -> float | None:
    """Return the mean over seeds of the score of the small model that all clients share; None if it has none."""
    values = finals(method, "slm").values()
    return math.fsum(values) / len(values) if values else None


def kept(method: Method) -> dict[str, float]:
    """Return client id to the mean over seeds of the score of the model that it keeps for itself."""
    scores: dict[str, list[float]] = {}
    for run in method.runs:
        for name, value in run.personal.items():
            scores.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in scores.items()}


def clients_plot(own: Mapping[str, float], shared: float, personal: Mapping[str, float]) -> Figure:
    """Plot bars per client: trained alone, with the federation's model, and with the model that it keeps.

    Args:
        own: client id to its score alone.
        shared: score of the model that all clients share.
        personal: client id to the score of the model that it keeps; may be empty.
    """
    figure = empty_figure(max(240, 120 + (54 if personal else 40) * len(own)), barmode="group", bargap=0.3)
    names = [literal(client_name(name)) for name in own]
    bars = [("Alone", list(own.values()), GREY), ("Federated, shared", [shared] * len(own), BLUE)]
    if personal:
        bars.append(("Federated, its own", [personal.get(name, math.nan) for name in own], PURPLE))
    for label, values, color in bars:
        figure.add_bar(
            x=values,
            y=names,
            orientation="h",
            name=label,
            marker_color=color,
            text=[percent(value) for value in values],
            textposition="auto",
            hovertemplate=f"%{{y}}, {label.lower()}: %{{text}}<extra></extra>",
        )
    label_axis(figure, [client_name(name) for name in own])
    everything = [*own.values(), shared, *personal.values()]
    figure.update_xaxes(title_text="Final score", automargin=True, **share_limits(everything))
    return figure


def clients_table(own: Mapping[str, float], shared: float, personal: Mapping[str, float]) -> Table:
    """Return each client's score alone and federated, and the difference in points."""
    extra = ("Federated, its own",) if personal else ()
    rows: list[tuple[str, ...]] = [
        (
            client_name(name),
            percent(value),
            percent(shared),
            points(shared - value),
            *((percent(personal.get(name)),) if personal else ()),
        )
        for name, value in own.items()
    ]
    header = ("Client", "Alone", "Federated, shared", "Gain in points", *extra)
    return Table("Score of each client’s small model on the common test examples", header, rows)
