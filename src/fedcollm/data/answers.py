"""Find which choice an answer names, in the one way that fits all rows.

An answer is the text of a choice, its letter (or the label that the row gives it), or its position, from 0 or from 1.
A single row can often be read in several ways: with the choices 2, 0 and 1, the answer 0 is a text and a position. So
the way is that of all rows of all files together, and it is not guessed:

- if the rows give their choices labels, and all answers are such labels, they are labels;
- if the configuration lists the choices, and all answers are texts of these, they are texts;
- otherwise it is the way that fits all rows. If several ways fit and differ in a row, the data is refused, and
  `task.format.answer_is` decides;
- if no way fits all rows, but each answer is either a text or a letter of the choices of its own row, and never both of
  different choices, texts and letters are mixed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fedcollm.data.choices import Choices
from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten

_KEY = "task.format.answer_is"

#: A whole number, also as pandas writes it once a cell of its column is empty.
_POSITION = re.compile(r"[0-9]{1,9}(\.0)?")


class Asked(NamedTuple):
    """A row with an answer.

    Attributes:
        place: its file and row, for messages.
        value: what the column of the answer holds.
        text: the same as a label, see `cells.label_text`.
        choices: the choices of the row.
        listed: whether they are those of the configuration.
    """

    place: str
    value: Any
    text: str
    choices: Choices
    listed: bool


class Way(NamedTuple):
    """A way to read answers.

    Attributes:
        words: what the answers are, for messages.
        find: returns the index of the choice that the answer of a row names; None if it names none.
    """

    words: str
    find: Callable[[Asked], int | None]


def _as_text(row: Asked) -> int | None:
    spellings = (row.text, str(row.value)) if isinstance(row.value, float) else (row.text,)  # 3 and 3.0
    found = [index for index, text in enumerate(row.choices.texts) if text in spellings]
    return found[0] if len(found) == 1 else None


def _as_letter(row: Asked) -> int | None:
    return row.choices.letters.index(row.text) if row.text in row.choices.letters else None


def _as_either(row: Asked) -> int | None:
    found = {index for index in (_as_text(row), _as_letter(row)) if index is not None}
    return found.pop() if len(found) == 1 and not row.listed else None


def _as_position(first: int) -> Callable[[Asked], int | None]:
    def index(row: Asked) -> int | None:
        if not _POSITION.fullmatch(row.text):
            return None
        found = int(row.text.partition(".")[0]) - first
        return found if 0 <= found < len(row.choices.texts) else None

    return index


#: Value of `task.format.answer_is` to the way that it stands for.
WAYS: Mapping[str, Way] = {
    "text": Way("texts of the choices", _as_text),
    "letter": Way("letters of the choices", _as_letter),
    "position": Way("positions of the choices from 0", _as_position(0)),
    "position_from_1": Way("positions of the choices from 1", _as_position(1)),
}


def answer_indices(rows: Sequence[Asked], answer_is: str, column: str) -> tuple[list[int], list[str]]:
    """Return the index of the choice that each row's answer names, and notes about how the answers were read.

    Args:
        rows: the rows with answers of all files.
        answer_is: a key of `WAYS`, or `auto`.
        column: the column of the answers, for messages.

    Raises:
        UserError: no way fits all rows, or several do and differ.
    """
    tried = WAYS if answer_is == "auto" else {answer_is: WAYS[answer_is]}
    found = {name: [way.find(row) for row in rows] for name, way in tried.items()}
    fitting = {name: indices for name, indices in found.items() if None not in indices}
    if not fitting and answer_is == "auto" and None not in (mixed := [_as_either(row) for row in rows]):
        note = f"some answers in column {column!r} are texts of the choices and some are letters"
        return [index for index in mixed if index is not None], [note]
    if not fitting:
        raise UserError(_unfit(rows, found, column))
    preferred = _preferred(rows, fitting)
    chosen = preferred or next(iter(fitting))
    other = next((name for name, indices in fitting.items() if indices != fitting[chosen]), None)
    if other is not None and preferred is None:
        raise UserError(_ambiguous(rows, fitting, (chosen, other), column))
    doubt = "" if other is None else f", though they could be {WAYS[other].words} as well ({_KEY})"
    notes = [f"the answers in column {column!r} are read as {WAYS[chosen].words}{doubt}"]
    notes = notes if doubt or chosen != "text" else []
    return [index for index in fitting[chosen] if index is not None], notes


def _preferred(rows: Sequence[Asked], fitting: Mapping[str, Any]) -> str | None:
    """Return the way that goes before others that fit, if there is one."""
    if "letter" in fitting and rows and all(row.choices.has_labels for row in rows):
        return "letter"
    if "text" in fitting and rows and all(row.listed for row in rows):
        return "text"
    return None


def _unfit(rows: Sequence[Asked], found: Mapping[str, Sequence[int | None]], column: str) -> str:
    """Return the message about the first row that does not fit the way that fits most rows."""
    best = max(found, key=lambda name: sum(index is not None for index in found[name]))
    row = rows[found[best].index(None)]
    shown = shorten(list(row.choices.texts))
    problem = "is not one of"
    if best == "text" and row.choices.texts.count(row.text) > 1:
        problem = "appears more than once among"
    mostly = f" The other answers are {WAYS[best].words}." if any(index is not None for index in found[best]) else ""
    advice = "Write all answers as letters." if "more than" in problem else "Correct the row or task.format.choices."
    return (
        f"{row.place}: answer {shorten(row.value)} (column {column!r}) {problem} the choices {shown}.{mostly} {advice}"
    )


def _ambiguous(
    rows: Sequence[Asked], fitting: Mapping[str, Sequence[int | None]], names: tuple[str, str], column: str
) -> str:
    one, other = names
    at = next(i for i, pair in enumerate(zip(fitting[one], fitting[other], strict=True)) if pair[0] != pair[1])
    row = rows[at]
    texts = [row.choices.texts[fitting[name][at] or 0] for name in names]
    return (
        f"{row.place}: answer {shorten(row.value)} (column {column!r}) can be read in two ways, as can all answers: "
        f"{WAYS[one].words} ({texts[0]!r}) and {WAYS[other].words} ({texts[1]!r}). Set {_KEY} to "
        f"{' or '.join(fitting)}."
    )
