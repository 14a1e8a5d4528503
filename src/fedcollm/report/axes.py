"""What all plots share: the empty figure, axes, colors, and labels that plotly shows literally."""

import html
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]

from fedcollm.config.roles import ROLES

#: A figure of plotly, which has no types.
Figure: TypeAlias = Any

# After Okabe and Ito: distinct with any kind of color vision, with a contrast of 3:1 to both white and near-black.
BLUE, VERMILLION, GREEN, PURPLE, GREY = "#1a7fc1", "#d55e00", "#009e73", "#c46a9b", "#868d97"
STACK = (BLUE, "#e69f00", GREEN, PURPLE, "#56b4e9", VERMILLION, "#a8a000", "#7a6bd0")
ROLE_COLORS = dict(zip(ROLES, (BLUE, VERMILLION, GREEN, PURPLE, GREY), strict=True))

#: Largest numbers of rows and of columns whose names do not overlap.
LEGIBLE_ROWS, LEGIBLE_COLUMNS = 60, 40
#: Settings of an axis of shares, from nothing to everything.
PERCENT: dict[str, Any] = {"tickformat": ".0%", "range": [-0.02, 1.02], "tick0": 0, "dtick": 0.2}


def empty_figure(height: int, **layout: object) -> Figure:
    """Return an empty figure without a style of its own.

    Args:
        height: height in pixels.
        layout: further settings of the layout.
    """
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}
    margin = {"l": 8, "r": 16, "t": 8, "b": 8}
    base: dict[str, Any] = {
        "template": go.layout.Template(),
        "height": height,
        "legend": legend,
        "margin": margin,
        "dragmode": False,
    }
    return go.Figure(layout=base | layout)


def literal(label: str, limit: int | None = None) -> str:
    """Return a label as literal text, in which plotly interprets no tags, cut to `limit` characters if there is one."""
    cut = label if limit is None or len(label) <= limit else label[: limit - 1].rstrip() + "…"
    return html.escape(cut, quote=False)


def round_axis(figure: Figure, rounds: Sequence[int]) -> None:
    """Label the x axis with whole rounds, at most about ten of them."""
    step = max(1, math.ceil((max(rounds, default=0) - min(rounds, default=0)) / 10))
    figure.update_xaxes(title_text="Round", tick0=0, dtick=step, showgrid=False, zeroline=False, automargin=True)
    if len(set(rounds)) > 1:
        figure.update_xaxes(range=[min(rounds) - 0.35, max(rounds) + 0.35])
    figure.update_yaxes(automargin=True)


def label_axis(figure: Figure, labels: Sequence[str], limit: int = 30) -> None:
    """Label the y axis from top to bottom. Cut long labels, more so on a narrow page; hovering shows them whole."""
    figure.update_yaxes(type="category", autorange="reversed", automargin=True, showgrid=False)
    if len(labels) > LEGIBLE_ROWS:
        return  # plotly then shows as many labels as fit
    cut = [literal(label, limit) for label in labels]
    figure.update_yaxes(tickmode="array", tickvals=[literal(label) for label in labels], ticktext=cut)
    figure.update_layout(meta={"narrow": [literal(label, 17) for label in labels]})


def share_limits(values: Sequence[float]) -> dict[str, Any]:
    """Return settings of an axis of shares that shows these values from 0% up, and never more than is possible.

    >>> share_limits([0.2, 0.5])["range"], share_limits([0.2, 0.99])["range"]
    ([0.0, 0.55], [0.0, 1.02])
    """
    top, bottom = max(values, default=1.0), min([*values, 0.0])
    highest = 1.02 if 0.94 < top <= 1 else round(1.1 * top, 4) or 1.0
    return {"tickformat": ".0%", "range": [round(1.1 * bottom, 4) + 0.0, highest]}


def clipped(value: float, half_width: float) -> tuple[float, float]:
    """Return the ends of an interval of a share, without what no share can be; a mean outside of 0 to 1 is no share.

    >>> clipped(0.9, 0.25), clipped(0.1, 0.25)
    ((0.65, 1.0), (0.0, 0.35))
    """
    low, high = round(value - half_width, 12), round(value + half_width, 12)
    return (max(0.0, low), min(1.0, high)) if 0 <= value <= 1 else (low, high)


def error_bars(values: Sequence[float], spans: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the settings of error bars that reach from both ends of a span around each value."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, (_, high) in zip(values, spans, strict=True)],
        "arrayminus": [value - low for value, (low, _) in zip(values, spans, strict=True)],
        "thickness": 2,
        "width": 5,
    }
