"""A plot of each row: SLM, LLM and, of a backdoor, attack success; wrong labels as lines over their share."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from benchmarks.robustness.defences import DEFENCES
from benchmarks.robustness.rows import ROWS, SHARES

Means = Mapping[str, Mapping[str, Mapping[str, float]]]

#: A defence has the same color in all plots.
COLORS: Mapping[str, str] = dict(zip(DEFENCES, itertools.cycle(qualitative.Dark24), strict=False))

PANELS: Mapping[str, str] = {
    "slm": "small model",
    "llm": "large model",
    "success_slm": "success, small model",
    "success_llm": "success, large model",
}


def write_page(means: Means, place: Path) -> int:
    """Write all plots to one page, and return their number."""
    figures = [*_lines(means), *_bars(means)]
    parts = [one.to_html(full_html=False, include_plotlyjs=i == 0) for i, one in enumerate(figures)]
    head = "<!doctype html><meta charset='utf-8'><title>Robustness</title>"
    place.write_text("\n".join([head, *parts]), encoding="utf-8")
    return len(figures)


def _lines(means: Means) -> list[Any]:
    """One figure for each kind of wrong labels and cohort, a line for each defence."""
    figures: list[Any] = []
    for line in dict.fromkeys(row.line for row in ROWS.values() if row.line):
        kind, _, cohort = line.rpartition("-")
        one = ROWS[f"{kind}-{100 * SHARES[-1]:.0f}-{cohort}"]
        places = {0.0: one.clean, **{share: f"{kind}-{100 * share:.0f}-{cohort}" for share in SHARES}}
        known = {share: means[name] for share, name in places.items() if name in means}
        if len(known) > (0.0 in known):
            figures.append(_line_figure(one.label, known))
    return figures


def _line_figure(title: str, known: Mapping[float, Mapping[str, Mapping[str, float]]]) -> Any:
    figure: Any = make_subplots(rows=1, cols=2, subplot_titles=[PANELS["slm"], PANELS["llm"]])
    for defence in dict.fromkeys(name for by_defence in known.values() for name in by_defence):
        for column, role in enumerate(("slm", "llm"), 1):
            points = [(100 * share, d[defence][role]) for share, d in known.items() if role in d.get(defence, {})]
            x, y = zip(*points, strict=True) if points else ((), ())
            trace = go.Scatter(
                x=x, y=y, name=defence, legendgroup=defence, showlegend=column == 1, marker={"color": COLORS[defence]}
            )
            figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(title="wrong labels at a bad client, %")
    return figure.update_layout(title=title)


def _bars(means: Means) -> list[Any]:
    """One figure for each other row, a bar for each defence, beside those without bad clients."""
    return [
        _bar_figure(ROWS[name].label, {"bad clients": by_defence, "all good": means.get(ROWS[name].clean, {})})
        for name, by_defence in means.items()
        if name in ROWS and not ROWS[name].line and ROWS[name].bad
    ]


def _bar_figure(title: str, groups: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Any:
    attacked = groups["bad clients"]
    panels = [panel for panel in PANELS if any(panel in values for values in attacked.values())]
    figure: Any = make_subplots(rows=1, cols=len(panels), subplot_titles=[PANELS[panel] for panel in panels])
    for column, panel in enumerate(panels, 1):
        for number, (group, by_defence) in enumerate(groups.items()):
            bars = {d: by_defence[d][panel] for d in attacked if panel in by_defence.get(d, {})}
            style = {"color": ("firebrick", "lightgray")[number]}
            trace = go.Bar(
                x=list(bars), y=list(bars.values()), name=group, marker=style, legendgroup=group, showlegend=column == 1
            )
            figure.add_trace(trace, row=1, col=column)
        if panel.startswith("success"):
            figure.update_yaxes(range=[0, 1], row=1, col=column)
    return figure.update_layout(title=title, barmode="group")
