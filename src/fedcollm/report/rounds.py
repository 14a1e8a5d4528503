"""Plots and tables of what happened when: a timeline of the last rounds, who took part, and ε by round."""

from collections.abc import Sequence
from itertools import accumulate

from fedcollm.config.roles import PARTS
from fedcollm.messages import RoundRecord, readable
from fedcollm.report.axes import BLUE, GREEN, GREY, PURPLE, VERMILLION, Figure, empty_figure, literal, round_axis
from fedcollm.report.federation import client_name, is_late
from fedcollm.report.formats import count, duration, natural
from fedcollm.report.tables import Table

#: Number of rounds in the timeline, and largest number of clients in the plot of who took part.
LAST_ROUNDS, MOST_CLIENTS = 3, 40
#: State of a client in a round to color and symbol.
_STATES = {
    "took part": (GREEN, "circle"),
    "late": ("#e69f00", "triangle-up"),
    "lost": (VERMILLION, "x"),
    "not asked": (GREY, "circle-open"),
}


def last_rounds(records: Sequence[RoundRecord]) -> list[RoundRecord]:
    """Return the last rounds whose seconds were recorded."""
    return [record for record in records if record.round > 0 and any(record.seconds.values())][-LAST_ROUNDS:]


def timeline_plot(records: Sequence[RoundRecord]) -> Figure:
    """Plot the parts of the last rounds as bars, from the start of the first of these rounds to the end of the last."""
    shown = last_rounds(records)
    figure = empty_figure(210, barmode="overlay", bargap=0.35)
    starts = [0.0, *accumulate(sum(record.seconds.get(part, 0.0) for part in PARTS) for record in shown)]
    for index, (part, color) in enumerate(zip(PARTS, (GREEN, PURPLE, GREY), strict=True)):
        before = list(PARTS)[:index]
        seconds = [record.seconds.get(part, 0.0) for record in shown]
        bases = [
            start + sum(record.seconds.get(name, 0.0) for name in before)
            for start, record in zip(starts, shown, strict=False)
        ]
        figure.add_bar(
            x=seconds,
            base=bases,
            y=[PARTS[part]] * len(shown),
            orientation="h",
            name=PARTS[part],
            marker_color=color,
            showlegend=False,
            customdata=[f"round {r.round}: {duration(value)}" for r, value in zip(shown, seconds, strict=True)],
            hovertemplate="%{y}, %{customdata}<extra></extra>",
        )
    for start, record in zip(starts, shown, strict=False):
        note = f"round {record.round}" + (f" ⚠{count(len(record.lost))}" if record.lost else "")
        style = {"showarrow": False, "xanchor": "left", "yref": "paper", "y": 1, "yanchor": "bottom", "xshift": 3}
        figure.add_annotation(x=start, text=note, **style)
        figure.add_vline(x=start, line={"width": 1, "dash": "dot", "color": GREY})
    figure.update_layout(margin_t=26)
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    figure.update_xaxes(title_text="Seconds", range=[0, starts[-1] * 1.02], automargin=True)
    return figure


def timeline_table(records: Sequence[RoundRecord]) -> Table:
    """Return when each part of the last rounds began, and how long it took."""
    rows: list[tuple[str, ...]] = []
    now = 0.0
    for record in last_rounds(records):
        for part, label in PARTS.items():
            seconds = record.seconds.get(part, 0.0)
            rows.append((str(record.round), label, f"{now:.1f}", f"{seconds:.1f}"))
            now += seconds
    return Table("The parts of the last rounds, in seconds", ("Round", "Part", "Begins at", "Takes"), rows)


def attendance(records: Sequence[RoundRecord], held: Sequence[str]) -> dict[str, list[str]]:
    """Return each client's state in every round of training: `took part`, `late`, `lost` or `not asked`.

    Args:
        records: records of a run; round 0 is left out.
        held: ids of the clients that are known from the data.
    """
    rounds = [record for record in records if record.round > 0]
    told = [name for record in rounds for name in (*record.participants, *record.lost)]
    return {name: [_state(name, record) for record in rounds] for name in sorted({*held, *told}, key=natural)}


def _state(name: str, record: RoundRecord) -> str:
    if name in record.lost:
        return "late" if is_late(record.lost[name]) else "lost"
    return "took part" if name in record.participants else "not asked"


def most_missed(states: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the clients that the plot shows: those that missed the most rounds, in natural order."""
    order = sorted(states, key=lambda name: -sum(state in ("late", "lost") for state in states[name]))
    kept = set(order[:MOST_CLIENTS])
    return {name: one for name, one in states.items() if name in kept}


def attendance_plot(records: Sequence[RoundRecord], states: dict[str, list[str]]) -> Figure:
    """Plot a row of marks per client, one mark per round."""
    rounds = [record for record in records if record.round > 0]
    figure = empty_figure(110 + 22 * len(states))
    for state, (color, symbol) in _STATES.items():
        marks = [
            (record, name)
            for name, one in states.items()
            for record, found in zip(rounds, one, strict=True)
            if found == state
        ]
        if not marks:
            continue
        figure.add_scatter(
            x=[record.round for record, _ in marks],
            y=[literal(client_name(name)) for _, name in marks],
            name=state,
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 10},
            customdata=[literal(readable(record.lost.get(name, state)), 80) for record, name in marks],
            hovertemplate="%{y}, round %{x}: %{customdata}<extra></extra>",
        )
    round_axis(figure, [record.round for record in rounds])
    names = [literal(client_name(name)) for name in states]
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=names, range=[len(names) - 0.4, -0.6], showgrid=False
    )
    figure.update_yaxes(tickmode="array", tickvals=names, ticktext=[literal(client_name(name), 30) for name in states])
    figure.update_layout(meta={"narrow": [literal(client_name(name), 17) for name in states]})
    return figure


def attendance_table(records: Sequence[RoundRecord], states: dict[str, list[str]]) -> Table:
    """Return in how many rounds each client took part, was late and was lost, with the last reason."""
    rows: list[tuple[str, ...]] = []
    for name, one in states.items():
        reasons = [readable(record.lost[name]) for record in records if name in record.lost]
        numbers = [count(one.count(state)) for state in _STATES]
        rows.append((client_name(name), *numbers, reasons[-1] if reasons else "–"))
    header = ("Client", *(f"Rounds {state}" for state in _STATES), "Last reason")
    return Table("Clients by round", header, rows)


def spent(records: Sequence[RoundRecord]) -> dict[int, float]:
    """Return round to the ε spent until its end; empty without differential privacy."""
    return {record.round: record.epsilon for record in records if record.epsilon is not None}


def epsilon_plot(records: Sequence[RoundRecord]) -> Figure:
    """Plot the ε spent so far, by round."""
    values = spent(records)
    figure = empty_figure(300)
    figure.add_scatter(
        x=list(values),
        y=list(values.values()),
        mode="lines+markers",
        line={"color": BLUE, "width": 2.5, "shape": "hv"},
        hovertemplate="round %{x}: ε = %{y:.3g}<extra></extra>",
        showlegend=False,
    )
    round_axis(figure, list(values))
    figure.update_yaxes(title_text="ε spent so far", range=[0, 1.1 * max(values.values()) or 1])
    return figure


def epsilon_table(records: Sequence[RoundRecord]) -> Table:
    """Return the ε spent so far, by round."""
    rows: list[tuple[str, ...]] = [(str(index), f"{value:.3g}") for index, value in spent(records).items()]
    return Table("ε spent so far", ("Round", "ε"), rows)
