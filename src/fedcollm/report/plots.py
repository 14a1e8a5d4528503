"""Plots of runs as plotly figures. Colours of text, grid and background come from the page."""

import html
import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fedcollm.messages import RoundRecord
from fedcollm.report.formats import byte_count, percent, share
from fedcollm.report.labels import PUBLIC, folded, label_order
from fedcollm.report.runs import Method
from fedcollm.report.scores import ROLES, Point, curve
from fedcollm.report.tables import LOSSES, PARTS

# After Okabe and Ito: told apart with any kind of colour vision, and 3:1 against both white and near-black.
BLUE, VERMILLION, GREEN, PURPLE, GREY = "#1a7fc1", "#d55e00", "#009e73", "#c46a9b", "#868d97"
STACK = (BLUE, "#e69f00", GREEN, PURPLE, "#56b4e9", VERMILLION, "#a8a000", "#7a6bd0")
ROLE_COLOURS = {"slm": BLUE, "llm": VERMILLION, "clients": GREEN}
MUTED = ("#7f8894", "#a58a5a", "#8f7fae", "#6c9488", "#a9788a", "#7388ad")
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("square-open", "diamond-open", "triangle-up-open", "x-thin-open", "pentagon-open", "triangle-down-open")


def _figure(height: int, **layout: object) -> go.Figure:
    """An empty figure without a look of its own."""
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}
    margin = {"l": 8, "r": 16, "t": 8, "b": 8}
    base = {"template": go.layout.Template(), "height": height, "legend": legend, "margin": margin, "dragmode": False}
    return go.Figure(layout=base | layout)


def _text(label: str, limit: int | None = None) -> str:
    """A label as literal text, since plotly reads tags in it; cut to a length if there is a limit."""
    cut = label if limit is None or len(label) <= limit else label[: limit - 1].rstrip() + "…"
    return html.escape(cut, quote=False)


def _round_axis(figure: go.Figure, rounds: Sequence[int]) -> None:
    """Whole rounds, at most about ten of them named."""
    step = max(1, math.ceil((max(rounds, default=0) - min(rounds, default=0)) / 10))
    figure.update_xaxes(title_text="Round", tick0=0, dtick=step, showgrid=False, automargin=True)
    figure.update_yaxes(automargin=True)


def accuracy_plot(methods: Sequence[Method]) -> go.Figure:
    """Accuracy by round: all roles of the first method, the small model of the others muted behind them."""
    figure = _figure(430, hovermode="x unified")
    rounds: list[int] = []
    for index, method in reversed(list(enumerate(methods[1:]))):
        points = curve(method, "slm")
        rounds += [point.round for point in points]
        line = {"color": MUTED[index % len(MUTED)], "width": 1.75, "dash": DASHES[index % len(DASHES)]}
        _add_curve(figure, points, _text(method.name), line, SYMBOLS[index % len(SYMBOLS)], rank=1000 + index)
    curves = {role: curve(methods[0], role) for role in ROLES}
    for rank, (role, points) in enumerate(curves.items()):
        rounds += [point.round for point in points]
        line = {
            "color": ROLE_COLOURS[role],
            "width": 1.75 if role == "clients" else 3,
            "dash": "dot" if role == "clients" else "solid",
        }
        _add_curve(figure, points, ROLES[role], line, "circle", rank=rank)
    _name_ends(figure, {role: points[-1] for role, points in curves.items() if points and role != "clients"})
    _round_axis(figure, rounds)
    figure.update_yaxes(title_text="Accuracy", tickformat=".0%", rangemode="tozero")
    return figure


def _add_curve(
    figure: go.Figure, points: Sequence[Point], name: str, line: Mapping[str, object], symbol: str, rank: int
) -> None:
    """A line with its band; the band is left out where no point has an interval."""
    if not points:
        return
    x, y = [point.round for point in points], [point.mean for point in points]
    if any(point.half_width for point in points):
        above = [point.mean + (point.half_width or 0) for point in points]
        below = [point.mean - (point.half_width or 0) for point in points]
        figure.add_scatter(
            x=x + x[::-1],
            y=above + below[::-1],
            fill="toself",
            fillcolor=line["color"],
            opacity=0.16,
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
        )
    text = [percent(point.mean, point.half_width) for point in points]
    figure.add_scatter(
        x=x,
        y=y,
        name=name,
        mode="lines+markers",
        line=dict(line),
        marker={"symbol": symbol, "size": 7},
        legendgroup=name,
        legendrank=rank,
        customdata=text,
        hovertemplate="%{customdata}",
    )


def _name_ends(figure: go.Figure, ends: Mapping[str, Point]) -> None:
    """Write the last values of lines beside them, the higher one above its line."""
    highest = max((point.mean for point in ends.values()), default=0)
    for role, point in ends.items():
        shift = 14 if point.mean == highest else -14
        text = f"<b>{percent(point.mean)}</b>"
        figure.add_annotation(
            x=point.round, y=point.mean, text=text, showarrow=False, yshift=shift, font_color=ROLE_COLOURS[role]
        )


def data_plot(split: Mapping[str, Mapping[str, int]]) -> go.Figure:
    """Labels by part. Bars stacked over the dimension with few values; a heatmap if both have many."""
    split = folded(split)
    labels, names = label_order(split), list(split)
    if len(labels) <= len(STACK):
        return _stacked(names, labels, [[split[part].get(label, 0) for part in names] for label in labels], STACK)
    if len(names) <= len(STACK) + 1:
        colours = [GREY if part == PUBLIC else STACK[index] for index, part in enumerate(names)]
        return _stacked(labels, names, [[split[part].get(label, 0) for label in labels] for part in names], colours)
    counts = [[split[part].get(label, 0) for part in names] for label in labels]
    figure = _figure(max(320, 120 + 22 * len(labels)))
    hover = "%{y}, %{x}: %{z} examples<extra></extra>"
    figure.add_heatmap(
        z=counts,
        x=[_text(p) for p in names],
        y=[_text(v) for v in labels],
        hovertemplate=hover,
        colorbar_title_text="Examples",
    )
    _label_axis(figure, labels)
    figure.update_xaxes(automargin=True, type="category")
    return figure


def _stacked(
    rows: Sequence[str], stack: Sequence[str], counts: Sequence[Sequence[int]], colours: Sequence[str]
) -> go.Figure:
    """Horizontal bars, one a row; counts[i][j] belongs to stack i and row j."""
    figure = _figure(max(220, 110 + 26 * len(rows)), barmode="stack", bargap=0.25)
    shown = [_text(row) for row in rows]
    for name, colour, numbers in zip(stack, colours, counts, strict=False):
        hover = "%{y}, %{fullData.name}: %{x}<extra></extra>"
        figure.add_bar(
            x=numbers, y=shown, orientation="h", name=_text(name, 40), marker_color=colour, hovertemplate=hover
        )
    _label_axis(figure, rows)
    figure.update_xaxes(title_text="Examples", automargin=True)
    return figure


def _label_axis(figure: go.Figure, labels: Sequence[str]) -> None:
    """Labels down the page, cut where they are long (the page cuts more if it is narrow); hover shows them whole."""
    figure.update_yaxes(
        type="category",
        autorange="reversed",
        automargin=True,
        showgrid=False,
        tickmode="array",
        tickvals=[_text(label) for label in labels],
        ticktext=[_text(label, 30) for label in labels],
    )
    figure.update_layout(meta={"narrow": [_text(label, 13) for label in labels]})


def time_plot(records: Sequence[RoundRecord]) -> go.Figure:
    """Seconds a round, stacked by part."""
    figure = _figure(360, barmode="stack", hovermode="x unified", bargap=0.3)
    rounds = [record.round for record in records]
    for (part, label), colour in zip(PARTS.items(), (GREEN, PURPLE, GREY), strict=True):
        seconds = [record.seconds.get(part, 0.0) for record in records]
        figure.add_bar(x=rounds, y=seconds, name=label, marker_color=colour, hovertemplate="%{y:.1f} s")
    _round_axis(figure, rounds)
    figure.update_yaxes(title_text="Seconds")
    return figure


def byte_plot(records: Sequence[RoundRecord], full: int | None) -> go.Figure:
    """Bytes of one client so far, on a logarithmic axis, against those of the whole model sent each way."""
    trained = [record for record in records if record.round > 0]
    figure = _figure(360, hovermode="x unified")
    x = list(range(1, len(trained) + 1))
    up, down = _cumulative([r.bytes_up for r in trained]), _cumulative([r.bytes_down for r in trained])
    lines = (
        [("Adapter, each way", up, BLUE, "solid")]
        if up == down
        else [("Adapter, up", up, BLUE, "solid"), ("Adapter, down", down, GREEN, "dot")]
    )
    if full:
        lines.append(("Full model, each way", [full * index for index in x], GREY, "dash"))
    for name, values, colour, dash in lines:
        figure.add_scatter(
            x=[record.round for record in trained],
            y=[value or None for value in values],
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2.5, "dash": dash},
            customdata=[byte_count(value) for value in values],
            hovertemplate="%{customdata}",
        )
    if full and up and up[-1]:
        text = f"{share(up[-1] / (full * len(up)))} of the full model"
        figure.add_annotation(
            x=trained[-1].round,
            y=math.log10(up[-1]),
            text=text,
            showarrow=False,
            yshift=14,
            xanchor="right",
            font_color=BLUE,
        )
    _round_axis(figure, [record.round for record in trained])
    figure.update_yaxes(type="log", title_text="Bytes so far", tickformat=".0s", ticksuffix="B", dtick=1)
    return figure


def _cumulative(values: Sequence[int]) -> list[int]:
    return [sum(values[: index + 1]) for index in range(len(values))]


def confusion_plot(rows: Sequence[tuple[str, str, int]], labels: Sequence[str]) -> go.Figure:
    """Share of every true label's test examples by predicted label; counts on hover."""
    counts = {(true, predicted): number for true, predicted, number in rows}
    matrix = [[counts.get((true, predicted), 0) for predicted in labels] for true in labels]
    shares = [[number / sum(row) if sum(row) else None for number in row] for row in matrix]
    figure = _figure(max(340, 150 + 20 * len(labels)))
    hover = "true: %{y}<br>predicted: %{x}<br>%{customdata} examples, %{z:.0%}<extra></extra>"
    shown = [_text(label) for label in labels]
    figure.add_heatmap(
        z=shares, x=shown, y=shown, customdata=matrix, hovertemplate=hover, zmin=0, zmax=1, xgap=1, ygap=1
    )
    figure.update_traces(colorbar={"tickformat": ".0%", "thickness": 10, "outlinewidth": 0, "nticks": 5})
    _label_axis(figure, labels)
    figure.update_yaxes(title_text="True label")
    short = [_text(label, 16) for label in labels]
    figure.update_xaxes(
        type="category",
        title_text="Predicted label",
        tickvals=shown,
        ticktext=short,
        tickangle=-60,
        automargin=True,
        showgrid=False,
    )
    return figure


def loss_plot(records: Sequence[RoundRecord]) -> go.Figure:
    """One small plot a loss that was recorded, each on its own scale."""
    kinds = [kind for kind in LOSSES if any(kind in record.losses for record in records)]
    columns = min(2, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    spacing = {"horizontal_spacing": 0.14, "vertical_spacing": 0.2}
    figure = make_subplots(
        rows, columns, subplot_titles=[LOSSES[kind] for kind in kinds], figure=_figure(200 * rows), **spacing
    )
    for index, (kind, colour) in enumerate(zip(kinds, (GREEN, BLUE, VERMILLION, PURPLE), strict=False)):
        points = [(record.round, record.losses[kind]) for record in records if kind in record.losses]
        figure.add_scatter(
            x=[index for index, _ in points],
            y=[value for _, value in points],
            mode="lines+markers",
            line={"color": colour, "width": 2.5},
            name=LOSSES[kind],
            hovertemplate="round %{x}: %{y:.3f}<extra></extra>",
            row=index // columns + 1,
            col=index % columns + 1,
        )
    figure.update_layout(showlegend=False, margin_t=30)
    figure.update_annotations(font_size=13)
    _round_axis(figure, [record.round for record in records if record.losses])
    figure.update_yaxes(rangemode="tozero")
    return figure
