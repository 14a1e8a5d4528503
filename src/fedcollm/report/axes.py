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
    figure.update_layout(meta={"narrow": [literal(label, 13) for label in labels]})
