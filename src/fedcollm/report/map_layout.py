"""Lay out the map of a federation: the server with its models, the public set, and every client, on a given width."""

import math
from collections.abc import Sequence
from typing import TypeVar

from fedcollm.report.federation import Federation, Member, Model
from fedcollm.report.formats import amount, byte_count, count, power
from fedcollm.report.map_shapes import Box, Dot, Drawing, Line, text_width

#: Widths of the two drawings: for a wide page, and for a phone.
WIDE, NARROW = 960, 380
#: Up to this many clients have a box each; more are dots in a ring.
MOST_BOXES = 30
#: Largest number of late or lost clients that are named beside a ring.
MOST_MISSED = 10
#: Largest number of dots in a ring; with more clients, a dot stands for several.
MOST_DOTS = 240

T = TypeVar("T")

_MARGIN, _GAP, _TITLE, _BODY = 10, 12, 14, 12
_MODEL = 66  # height of a model's box


def drawings(federation: Federation) -> list[Drawing]:
    """Return the map for a wide page and for a phone; the page shows the one that fits."""
    return [_drawn(federation, name, width) for name, width in (("wide", WIDE), ("narrow", NARROW))]


def described(federation: Federation) -> str:
    """Return the map in words, for people who can't see it."""
    models = " and ".join(f"{model.label.lower()} {model.name}" for model in federation.models)
    words = f"The server with {models}, {_public(federation)}, and {amount(len(federation.members), 'client')}: "
    shown = federation.members[:MOST_BOXES]
    clients = [", ".join(part for part in (one.name, one.size, one.state) if part) for one in shown]
    return words + "; ".join(clients) + ("; …" if len(shown) < len(federation.members) else "") + "."


def _public(federation: Federation) -> str:
    return f"{count(federation.labelled)} labelled and {count(federation.unlabelled)} unlabelled public examples"


def _drawn(federation: Federation, name: str, width: int) -> Drawing:
    drawing = Drawing(name, width)
    middle, bottom = _server(drawing, federation)
    top = _trunk(drawing, federation, middle, bottom)
    if len(federation.members) <= MOST_BOXES:
        drawing.height = _grid(drawing, federation.members, middle, top) + _MARGIN
    else:
        drawing.height = _ring(drawing, federation.members, middle, top) + _MARGIN
    return drawing


def _server(drawing: Drawing, federation: Federation) -> tuple[float, float]:
    """Draw the server, and the public set beside or above it; return the middle and the bottom of the server."""
    if drawing.width == NARROW:
        width, left, top = drawing.width - 2 * _MARGIN, _MARGIN, 78.0
        _public_box(drawing, federation, (left, _MARGIN, width, 46))
        drawing.lines.append(Line([(left + width / 2, 56), (left + width / 2, top - 2)], "public", "end"))
    else:
        width, top = 560, float(_MARGIN)
        left = (drawing.width - width - 220) / 2
        _public_box(drawing, federation, (left + width + 40, top + 34, 180, _MODEL))
        drawing.lines.append(Line([(left + width + 40, top + 67), (left + width + 2, top + 67)], "public", "end"))
    height = _MODEL + 46
    drawing.boxes.append(Box(left, top, width, height, "server"))
    drawing.write(left + 14, top + 23, "Server", "title", (width, _TITLE), "start")
    _models(drawing, federation.models, (left + 12, top + 34, width - 24))
    return left + width / 2, top + height


def _public_box(drawing: Drawing, federation: Federation, place: tuple[float, float, float, float]) -> None:
    x, y, width, height = place
    drawing.boxes.append(Box(x, y, width, height, "public"))
    parts = [(federation.labelled, "labelled"), (federation.unlabelled, "unlabelled")]
    lines = [f"{count(number)} {word}" for number, word in parts if number] or ["no examples"]
    lines = lines if height > 60 else [", ".join(lines)]
    drawing.write(x + width / 2, y + (height > 60) * 4 + 19, "Public set", "title", (width - 16, _TITLE))
    for index, line in enumerate(lines):
        drawing.write(x + width / 2, y + (height > 60) * 4 + 36 + 15 * index, line, "body", (width - 16, _BODY))


def _models(drawing: Drawing, models: Sequence[Model], place: tuple[float, float, float]) -> None:
    """Draw the models side by side, with an arrow between two that distill into each other."""
    left, top, width = place
    gap = 84 if drawing.width == WIDE else 26
    each = (width - gap * (len(models) - 1)) / len(models)
    for index, model in enumerate(models):
        x = left + index * (each + gap)
        drawing.boxes.append(Box(x, top, each, _MODEL, f"model {model.role}"))
        room = each - 6
        size = model.size if text_width(model.size, 11) <= room else model.size.partition(",")[0]
        drawing.write(x + each / 2, top + 19, model.label, f"title {model.role}", (room, _TITLE))
        drawing.write(x + each / 2, top + 37, model.name, "body", (room, _BODY))
        drawing.write(x + each / 2, top + 54, size, "small", (room, 11))
        if index:
            y = top + _MODEL / 2
            drawing.lines.append(Line([(x - gap + 3, y), (x - 3, y)], "link", "both"))
            if gap > 60:
                drawing.write(x - gap / 2, y - 9, "distillation", "small", (gap, 11))


def _trunk(drawing: Drawing, federation: Federation, middle: float, bottom: float) -> float:
    """Draw the arrow between server and clients, with what travels on it; return where it ends."""
    down, up = byte_count(federation.bytes_down), byte_count(federation.bytes_up)
    lines = [f"↓ {down}  ↑ {up}", "per client and round"] if federation.bytes_down + federation.bytes_up else []
    top = bottom + 62
    drawing.lines.append(Line([(middle, bottom + 2), (middle, top)], "link", "start"))
    for index, line in enumerate(lines):
        drawing.write(
            middle + 12, bottom + 27 + 16 * index, line, "title" if not index else "small", (220, 13), "start"
        )
    right = middle - 12
    badges = ["secure aggregation"] if federation.secure else []
    if federation.epsilon is not None:
        badges.append(
            f"ε = {federation.epsilon:.3g}" + (f", δ = {power(federation.delta)}" if federation.delta else "")
        )
    for index, badge in enumerate(badges):
        width = text_width(badge, 11) + 18
        y = bottom + (8 if len(badges) == 2 else 20) + 25 * index
        drawing.boxes.append(Box(right - width, y, width, 20, "badge"))
        drawing.write(right - width / 2, y + 14, badge, "badge", (width, 11))
    return top


def _grid(drawing: Drawing, members: Sequence[Member], middle: float, top: float) -> float:
    """Draw a box per client, in rows that hang on a rail; return the bottom."""
    most = 6 if drawing.width == WIDE else (2 if len(members) <= 6 else 3)
    rows = math.ceil(len(members) / most)
    columns = math.ceil(len(members) / rows)
    rail = 16 if rows > 1 else 0
    room = drawing.width - 2 * _MARGIN - rail
    each = min(200.0, (room - _GAP * (columns - 1)) / columns)
    used = columns * each + _GAP * (columns - 1)
    left = middle - used / 2 if columns == 1 else _MARGIN + rail + (room - used) / 2
    height, pitch, busses = 62 + 16 * any(one.state for one in members), 30, list[float]()
    for index, row in enumerate(in_rows(members, columns)):
        bus = top + index * (height + pitch)
        busses.append(bus)
        centers = [left + each / 2 + number * (each + _GAP) for number in range(len(row))]
        ends = [*centers, *([left - rail] if rows > 1 else []), *([middle] if index == 0 else [])]
        drawing.lines.append(Line([(min(ends), bus), (max(ends), bus)], "link"))
        for center, member in zip(centers, row, strict=True):
            drawing.lines.append(Line([(center, bus), (center, bus + 16)], "link", "end"))
            _client(drawing, member, (center - each / 2, bus + 18, each, height))
    if rows > 1:
        drawing.lines.append(Line([(left - rail, busses[0]), (left - rail, busses[-1])], "link"))
    return busses[-1] + 18 + height


def _client(drawing: Drawing, member: Member, place: tuple[float, float, float, float]) -> None:
    x, y, width, height = place
    drawing.boxes.append(Box(x, y, width, height, f"client{' missed' if member.state else ''}"))
    center, room = x + width / 2, width - 12
    drawing.write(center, y + 25, member.name, "title", (room, _TITLE))
    drawing.write(center, y + 43, member.size, "body", (room, _BODY))
    if member.state:
        short = [f"{kind} {n}×" for kind, n in (("late", member.late), ("lost", member.lost)) if n]
        words = member.state if text_width(member.state, 11) <= room else ", ".join(short)
        drawing.write(center, y + 60, f"⚠ {words}", "missed", (room, 11))


def _ring(drawing: Drawing, members: Sequence[Member], middle: float, top: float) -> float:
    """Draw a dot per client, or per group of clients, around a summary of all of them; return the bottom."""
    group = math.ceil(len(members) / MOST_DOTS)
    groups = in_rows(members, group)
    radius = 96 if drawing.width == NARROW else 130
    rings = math.ceil(len(groups) / 60)
    outer = radius + 16 * (rings - 1)
    center = top + outer + 12
    drawing.lines.append(Line([(middle, top), (middle, center - outer - 9)], "link", "end"))
    if drawing.width == WIDE:
        _missed(drawing, members, (middle + outer + 36, center - 60))
    for ring, part in enumerate(in_rows(groups, math.ceil(len(groups) / rings))):
        for index, some in enumerate(part):
            angle = 2 * math.pi * (index + ring % 2 / 2) / len(part) - math.pi / 2
            at = radius + 16 * ring
            x, y = round(middle + at * math.cos(angle), 1), round(center + at * math.sin(angle), 1)
            drawing.dots.append(Dot(x, y, 4.5, "missed" if any(one.state for one in some) else "client", _names(some)))
    for index, line in enumerate(_summary(members, group)):
        kind = "missed" if "late" in line else ("title" if index == 0 else "body")
        drawing.write(middle, center - 28 + 19 * index, line, kind, (2 * radius - 24, _TITLE if not index else _BODY))
    bottom = center + outer + 8
    return bottom if drawing.width == WIDE else _missed(drawing, members, (_MARGIN + 6, bottom + 22))


def _missed(drawing: Drawing, members: Sequence[Member], place: tuple[float, float]) -> float:
    """Name the first clients that were late or lost, which are dots without a name; return the bottom."""
    x, y = place
    missed = [one for one in members if one.state]
    lines = [f"⚠ {one.name}: {one.state}" for one in missed[:MOST_MISSED]]
    lines += [f"and {count(len(missed) - MOST_MISSED)} more"] if len(missed) > MOST_MISSED else []
    for index, line in enumerate(lines):
        drawing.write(x, y + 18 * index, line, "missed", (drawing.width - x - _MARGIN, 11), "start")
    return y + 18 * max(0, len(lines) - 1)


def in_rows(values: Sequence[T], columns: int) -> list[Sequence[T]]:
    """Return values in rows, each of which is full but the last.

    >>> in_rows([1, 2, 3, 4, 5], 2)
    [[1, 2], [3, 4], [5]]
    """
    return [values[start : start + columns] for start in range(0, len(values), columns)]


def _names(some: Sequence[Member]) -> str:
    """Return the clients of a dot with their data."""
    return "; ".join(", ".join(part for part in (one.name, one.size, one.state) if part) for one in some)


def _summary(members: Sequence[Member], group: int) -> list[str]:
    """Return what stands in the middle of a ring."""
    lines = [amount(len(members), "client")]
    if sizes := [one.examples for one in members if one.examples is not None]:
        lines.append(amount(sum(sizes), "example"))
        lines.append(f"{count(min(sizes))} to {count(max(sizes))} each")
    if missed := sum(bool(one.state) for one in members):
        lines.append(f"{count(missed)} late or lost")
    return lines + ([f"a dot is up to {group} clients"] if group > 1 else [])
