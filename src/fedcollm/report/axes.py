"""What plots have in common: an empty figure, its axes, its colours, and text that plotly takes literally."""

import html
import math
from collections.abc import Sequence

import plotly.graph_objects as go

# After Okabe and Ito: told apart with any kind of colour vision, and 3:1 against both white and near-black.
BLUE, VERMILLION, GREEN, PURPLE, GREY = "#1a7fc1", "#d55e00", "#009e73", "#c46a9b", "#868d97"
STACK = (BLUE, "#e69f00", GREEN, PURPLE, "#56b4e9", VERMILLION, "#a8a000", "#7a6bd0")
ROLE_COLOURS = {"slm": BLUE, "llm": VERMILLION, "clients": GREEN, "personal": PURPLE}

#: Names of more rows or columns than these would overlap.
LEGIBLE_ROWS, LEGIBLE_COLUMNS = 60, 12


def empty_figure(height: int, **layout: object) -> go.Figure:
    """An empty figure without a look of its own."""
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}
    margin = {"l": 8, "r": 16, "t": 8, "b": 8}
    base = {"template": go.layout.Template(), "height": height, "legend": legend, "margin": margin, "dragmode": False}
    return go.Figure(layout=base | layout)


def literal(label: str, limit: int | None = None) -> str:
    """A label as literal text, since plotly reads tags in it; cut to a length if there is a limit."""
    cut = label if limit is None or len(label) <= limit else label[: limit - 1].rstrip() + "…"
    return html.escape(cut, quote=False)


def round_axis(figure: go.Figure, rounds: Sequence[int]) -> None:
    """Whole rounds, at most about ten of them named."""
    step = max(1, math.ceil((max(rounds, default=0) - min(rounds, default=0)) / 10))
    figure.update_xaxes(title_text="Round", tick0=0, dtick=step, showgrid=False, zeroline=False, automargin=True)
    if len(set(rounds)) > 1:
        figure.update_xaxes(range=[min(rounds) - 0.35, max(rounds) + 0.35])
    figure.update_yaxes(automargin=True)


def label_axis(figure: go.Figure, labels: Sequence[str], limit: int = 30) -> None:
    """Labels down the page, cut where they are long (the page cuts more if it is narrow); hover shows them whole."""
    figure.update_yaxes(type="category", autorange="reversed", automargin=True, showgrid=False)
    if len(labels) > LEGIBLE_ROWS:
        return  # plotly then names as many as fit
    cut = [literal(label, limit) for label in labels]
    figure.update_yaxes(tickmode="array", tickvals=[literal(label) for label in labels], ticktext=cut)
    figure.update_layout(meta={"narrow": [literal(label, 13) for label in labels]})
