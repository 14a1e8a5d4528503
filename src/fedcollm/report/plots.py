"""Plot runs as plotly figures. The colors of text, grid and background come from the page."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, cast

from plotly import subplots  # pyright: ignore[reportMissingTypeStubs]

from fedcollm.config.roles import MODELS, PARTS, ROLES
from fedcollm.messages import RoundRecord
from fedcollm.report.axes import (
    BLUE,
    GREEN,
    GREY,
    LEGIBLE_COLUMNS,
    PURPLE,
    ROLE_COLORS,
    STACK,
    VERMILLION,
    Figure,
    clipped,
    empty_figure,
    error_bars,
    label_axis,
    literal,
    round_axis,
    share_limits,
)
from fedcollm.report.formats import byte_count, metric_title, percent, share
from fedcollm.report.labels import PUBLIC, folded, label_order
from fedcollm.report.runs import Method, metric_of
from fedcollm.report.scores import Point, curve, finals, point_of
from fedcollm.report.tables import LOSSES

#: Colors, dashes and markers of the methods that the first one is compared with.
MUTED = ("#7f8894", "#a58a5a", "#8f7fae", "#6c9488", "#a9788a", "#7388ad")
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("square-open", "diamond-open", "triangle-up-open", "x-thin-open", "pentagon-open", "triangle-down-open")


def accuracy_plot(methods: Sequence[Method]) -> Figure:
    """Plot accuracy by round: all roles of the first method, before the other methods' small models in muted colors."""
    figure = empty_figure(430, hovermode="x unified")
    rounds: list[int] = []
    for index, method in reversed(list(enumerate(methods[1:]))):
        points = curve(method, "slm")
        rounds += [point.round for point in points]
        line = {"color": MUTED[index % len(MUTED)], "width": 1.75, "dash": DASHES[index % len(DASHES)]}
        _add_curve(figure, points, literal(method.label), line, SYMBOLS[index % len(SYMBOLS)], rank=1000 + index)
    curves = {role: curve(methods[0], role) for role in ROLES}
    for rank, (role, points) in enumerate(curves.items()):
        rounds += [point.round for point in points]
        line = {
            "color": ROLE_COLORS[role],
            "width": 3 if role in MODELS else 1.75,
            "dash": "solid" if role in MODELS else "dot",
        }
        _add_curve(figure, points, ROLES[role].label, line, "circle", rank=rank)
    _name_ends(figure, {role: points[-1] for role, points in curves.items() if points and role in MODELS})
    round_axis(figure, rounds)
    shown = [curve(method, role) for method in methods for role in ROLES if role in curves]
    ends = [end for points in shown for point in points for end in clipped(point.mean, point.half_width or 0)]
    figure.update_yaxes(title_text=metric_title(metric_of(methods)), **share_limits(ends))
    return figure


def _add_curve(
    figure: Figure, points: Sequence[Point], name: str, line: Mapping[str, object], symbol: str, rank: int
) -> None:
    """Add a line with markers. If it is solid, show its intervals as a band, or each of few seeds as a dot.

    Other lines get neither: the bands of many methods would hide each other.
    """
    if not points:
        return
    if line["dash"] == "solid":
        _add_dots(figure, points, name, line["color"])
    if any(point.half_width for point in points) and line["dash"] == "solid":
        _add_band(figure, points, name, line["color"])
    figure.add_scatter(
        x=[point.round for point in points],
        y=[point.mean for point in points],
        name=name,
        mode="lines+markers",
        line=dict(line),
        marker={"symbol": symbol, "size": 7},
        legendgroup=name,
        legendrank=rank,
        customdata=[percent(point.mean, point.half_width) for point in points],
        hovertemplate="%{customdata}",
    )


def _add_dots(figure: Figure, points: Sequence[Point], name: str, color: object) -> None:
    """Add a small dot for each seed where there are several, but too few for an interval."""
    dots = [(p.round, value) for p in points if p.half_width is None and len(p.values) > 1 for value in p.values]
    if dots:
        figure.add_scatter(
            x=[index for index, _ in dots],
            y=[value for _, value in dots],
            mode="markers",
            marker={"color": color, "size": 5, "opacity": 0.55},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
        )


def _add_band(figure: Figure, points: Sequence[Point], name: str, color: object) -> None:
    """Add the area between the ends of the points' intervals."""
    x = [point.round for point in points]
    ends = [clipped(point.mean, point.half_width or 0) for point in points]
    below, above = [low for low, _ in ends], [high for _, high in ends]
    figure.add_scatter(
        x=x + x[::-1],
        y=above + below[::-1],
        fill="toself",
        fillcolor=color,
        opacity=0.18,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )


def _name_ends(figure: Figure, ends: Mapping[str, Point]) -> None:
    """Write the last value of each line beside it; shift the values apart if they are close."""
    order = sorted(ends, key=lambda role: ends[role].mean)
    close = len(order) > 1 and ends[order[-1]].mean - ends[order[0]].mean < 0.05
    for role, point in ends.items():
        shift = (8 if role == order[-1] else -8) if close else 0
        style = {"showarrow": False, "xanchor": "left", "xshift": 9, "yshift": shift, "font_color": ROLE_COLORS[role]}
        figure.add_annotation(x=point.round, y=point.mean, text=f"<b>{percent(point.mean)}</b>", **style)
    figure.update_layout(margin_r=64)


def final_plot(methods: Sequence[Method]) -> Figure:
    """Plot the final score of both models by method, with intervals over seeds."""
    figure, ends = empty_figure(150 + 38 * len(methods)), list[float]()
    for role, symbol in zip(MODELS, ("circle", "diamond"), strict=True):
        known = [(m.label, point_of(0, list(values.values()))) for m in methods if (values := finals(m, role))]
        if not known:
            continue
        spans = [clipped(point.mean, point.half_width or 0) for _, point in known]
        ends += [end for span in spans for end in span] + [value for _, point in known for value in point.values]
        _add_seeds(figure, known, role)
        figure.add_scatter(
            x=[point.mean for _, point in known],
            y=[literal(name) for name, _ in known],
            error_x=error_bars([point.mean for _, point in known], spans),
            name=ROLES[role].label,
            mode="markers",
            marker={"color": ROLE_COLORS[role], "size": 10, "symbol": symbol},
            customdata=[percent(point.mean, point.half_width) for _, point in known],
            hovertemplate="%{y}: %{customdata}",
        )
    label_axis(figure, [method.label for method in methods])
    figure.update_yaxes(showgrid=True, categoryorder="array", categoryarray=[literal(m.label) for m in methods])
    figure.update_xaxes(title_text=f"Final {metric_of(methods)}", automargin=True, **share_limits(ends))
    return figure


def _add_seeds(figure: Figure, known: Sequence[tuple[str, Point]], role: str) -> None:
    """Add a small dot for each seed of the methods that have too few of them for an interval."""
    dots = [(name, value) for name, p in known if p.half_width is None and len(p.values) > 1 for value in p.values]
    if dots:
        figure.add_scatter(
            x=[value for _, value in dots],
            y=[literal(name) for name, _ in dots],
            mode="markers",
            marker={"color": ROLE_COLORS[role], "size": 5, "opacity": 0.6},
            hoverinfo="skip",
            showlegend=False,
        )


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
    if full and up and up[-1]:
        text = f"{share(up[-1] / (full * len(up)))} of the full model"
        below = up[-1] > 0.3 * full * len(up)  # where there is no room above
        style = {"showarrow": False, "yshift": -14 if below else 14, "xanchor": "right", "font_color": BLUE}
        figure.add_annotation(x=trained[-1].round, y=math.log10(up[-1]), text=text, **style)
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
    ticks = {"tickvals": shown, "ticktext": short, "tickangle": -90 if max(map(len, labels)) > 3 else 0}
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
