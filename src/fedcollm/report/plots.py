"""Plot one run as plotly figures. The colors of text, grid and background come from the page."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, cast

from plotly import subplots  # pyright: ignore[reportMissingTypeStubs]

from fedcollm.config.roles import PARTS
from fedcollm.messages import RoundRecord
from fedcollm.report.axes import (
    BLUE,
    GREEN,
    GREY,
    LEGIBLE_COLUMNS,
    PURPLE,
    STACK,
    VERMILLION,
    Figure,
    empty_figure,
    label_axis,
    literal,
    round_axis,
)
from fedcollm.report.formats import byte_count
from fedcollm.report.labels import PUBLIC, folded, label_order
from fedcollm.report.tables import LOSSES


def data_plot(split: Mapping[str, Mapping[str, int]]) -> Figure:
    """Plot labels by part: as stacked bars if there are few labels or few parts, otherwise as a heatmap."""
    split = folded(split)
    labels, names = label_order(split), list(split)
    if len(labels) <= len(STACK):
        return _stacked(names, labels, [[split[part].get(label, 0) for part in names] for label in labels], STACK)
    if len(names) <= len(STACK) + 1:
        colors = [GREY if part == PUBLIC else STACK[index] for index, part in enumerate(names)]
        return _stacked(labels, names, [[split[part].get(label, 0) for label in labels] for part in names], colors)
    counts = [[split[part].get(label, 0) for part in names] for label in labels]
    figure = empty_figure(max(320, 120 + 22 * len(labels)))
    hover = "%{y}, %{x}: %{z} examples<extra></extra>"
    figure.add_heatmap(
        z=counts,
        x=[literal(p) for p in names],
        y=[literal(v) for v in labels],
        hovertemplate=hover,
        colorbar_title_text="Examples",
    )
    figure.update_layout(margin_t=30)
    label_axis(figure, labels)
    figure.update_xaxes(automargin=True, type="category")
    return figure


def count_plot(counts: Mapping[str, int]) -> Figure:
    """Plot one horizontal bar per name, in the order that is given."""
    return _stacked(list(counts), ["examples"], [list(counts.values())], [BLUE])


def _stacked(
    rows: Sequence[str], stack: Sequence[str], counts: Sequence[Sequence[int]], colors: Sequence[str]
) -> Figure:
    """Plot one horizontal bar per row, where counts[i][j] is the length of segment i in row j."""
    figure = empty_figure(min(1600, max(220, 110 + 26 * len(rows))), barmode="stack", bargap=0.25)
    shown = [literal(row) for row in rows]
    for name, color, numbers in zip(stack, colors, counts, strict=False):
        hover = "%{y}, %{fullData.name}: %{x}<extra></extra>"
        figure.add_bar(
            x=numbers, y=shown, orientation="h", name=literal(name, 40), marker_color=color, hovertemplate=hover
        )
    label_axis(figure, rows)
    figure.update_xaxes(title_text="Examples", automargin=True)
    return figure


def time_plot(records: Sequence[RoundRecord]) -> Figure:
    """Plot the seconds of each round, stacked by part."""
    figure = empty_figure(420, barmode="stack", hovermode="x unified", bargap=0.3)
    records = [record for record in records if any(record.seconds.values())]
    rounds = [record.round for record in records]
    for (part, label), color in zip(PARTS.items(), cycle((GREEN, PURPLE, GREY)), strict=False):
        seconds = [record.seconds.get(part, 0.0) for record in records]
        figure.add_bar(x=rounds, y=seconds, name=label, marker_color=color, hovertemplate="%{y:.1f} s")
    round_axis(figure, rounds)
    figure.update_xaxes(range=[min(rounds) - 0.5, max(rounds) + 0.5])
    figure.update_yaxes(title_text="Seconds", rangemode="nonnegative")
    return figure


def byte_plot(records: Sequence[RoundRecord], full: int | None) -> Figure:
    """Plot the cumulative bytes of one client on a logarithmic axis, with those of sending the full model each way.

    Args:
        records: the records of a run; round 0 is left out.
        full: bytes of the full model; None if unknown.
    """
    trained = [record for record in records if record.round > 0]
    figure = empty_figure(360, hovermode="x unified")
    up = _cumulative([record.bytes_up for record in trained])
    down = _cumulative([record.bytes_down for record in trained])
    lines = _byte_lines(up, down, full)
    for name, values, color, dash in lines:
        figure.add_scatter(
            x=[record.round for record in trained],
            y=[value or None for value in values],
            name=name,
            mode="lines+markers",
            line={"color": color, "width": 2.5, "dash": dash},
            customdata=[byte_count(value) for value in values],
            hovertemplate="%{customdata}",
        )
    round_axis(figure, [record.round for record in trained])
    _byte_axis(figure, [value for _, values, _, _ in lines for value in values if value])
    return figure


def _byte_lines(up: list[int], down: list[int], full: int | None) -> list[tuple[str, list[int], str, str]]:
    """Return the name, the values, the color and the dash of each line."""
    if up == down:
        lines = [("Adapter, each way", up, BLUE, "solid")]
    else:
        lines = [("Adapter, up", up, BLUE, "solid"), ("Adapter, down", down, GREEN, "dot")]
    if full:
        lines.append(("Full model, each way", [full * index for index in range(1, len(up) + 1)], GREY, "dash"))
    return lines


def _byte_axis(figure: Figure, values: Sequence[int]) -> None:
    """Make the y axis logarithmic, over whole powers of ten."""
    low, high = math.floor(math.log10(min(values, default=1))), math.ceil(math.log10(max(values, default=10)))
    ticks = [10.0**power for power in range(low, high + 1)]
    text = [byte_count(tick) for tick in ticks]
    limits = [low - 0.05, high + 0.05]
    figure.update_yaxes(type="log", title_text="Bytes so far", tickvals=ticks, ticktext=text, range=limits)


def _cumulative(values: Sequence[int]) -> list[int]:
    return [sum(values[: index + 1]) for index in range(len(values))]


def confusion_plot(rows: Sequence[tuple[str, str, int]], labels: Sequence[str]) -> Figure:
    """Plot the share of each true label's test examples by predicted label; hovering shows counts."""
    counts = {(true, predicted): number for true, predicted, number in rows}
    matrix = [[counts.get((true, predicted), 0) for predicted in labels] for true in labels]
    shares = [[number / sum(row) if sum(row) else None for number in row] for row in matrix]
    figure = empty_figure(max(340, 150 + 20 * len(labels)))
    hover = "true: %{y}<br>predicted: %{x}<br>%{customdata} examples, %{z:.0%}<extra></extra>"
    shown = [literal(label) for label in labels]
    figure.add_heatmap(
        z=shares, x=shown, y=shown, customdata=matrix, hovertemplate=hover, zmin=0, zmax=1, xgap=1, ygap=1
    )
    figure.update_traces(colorbar={"tickformat": ".0%", "thickness": 8, "outlinewidth": 0, "nticks": 5, "xpad": 4})
    figure.update_layout(margin_t=30)
    label_axis(figure, labels, 22)
    short = [literal(label, 16) for label in labels]
    ticks: dict[str, Any] = {"tickvals": shown, "ticktext": short, "tickangle": -90 if max(map(len, labels)) > 3 else 0}
    if len(labels) > 12:
        ticks["tickfont"] = {"size": 10}
    figure.update_xaxes(type="category", automargin=True, showgrid=False, title_text="Predicted label", **ticks)
    if len(labels) > LEGIBLE_COLUMNS:
        figure.update_xaxes(showticklabels=False, ticks="", title_text="Predicted label, in the order of the rows")
    return figure


def loss_plot(records: Sequence[RoundRecord]) -> Figure:
    """Plot every recorded loss, each in a small plot with its own scale."""
    kinds = [kind for kind in LOSSES if any(kind in record.losses for record in records)]
    columns = min(2, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    figure: Figure = cast(Any, subplots).make_subplots(
        rows,
        columns,
        subplot_titles=[LOSSES[kind] for kind in kinds],
        figure=empty_figure(210 * rows),
        horizontal_spacing=0.14,
        vertical_spacing=0.24 if rows > 1 else None,
    )
    for index, (kind, color) in enumerate(zip(kinds, (GREEN, BLUE, VERMILLION, PURPLE), strict=False)):
        points = [(record.round, record.losses[kind]) for record in records if kind in record.losses]
        figure.add_scatter(
            x=[index for index, _ in points],
            y=[value for _, value in points],
            mode="lines+markers",
            line={"color": color, "width": 2.5},
            name=LOSSES[kind],
            hovertemplate="round %{x}: %{y:.3f}<extra></extra>",
            row=index // columns + 1,
            col=index % columns + 1,
        )
    figure.update_layout(showlegend=False, margin_t=30)
    figure.update_annotations(font_size=12)
    round_axis(figure, [record.round for record in records if record.losses])
    figure.update_xaxes(title_text="")
    figure.update_yaxes(rangemode="tozero")
    return figure
