"""Plot the scores of methods, by round and at their end."""

from collections.abc import Mapping, Sequence

from fedcollm.config.roles import MODELS, ROLES
from fedcollm.report.axes import (
    ROLE_COLORS,
    Figure,
    clipped,
    empty_figure,
    error_bars,
    label_axis,
    literal,
    round_axis,
    share_limits,
)
from fedcollm.report.formats import metric_title, percent
from fedcollm.report.runs import Method, metric_of
from fedcollm.report.scores import Point, curve, finals, point_of

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
