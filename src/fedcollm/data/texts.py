"""Public text without labels, for healing a cut model: from an installed package, from a file, or from the hub."""

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedcollm.data.sources.icd10 import other_descriptions
from fedcollm.data.sources.qa import download
from fedcollm.data.tables import KNOWN, Reading, ending_of, file_rows
from fedcollm.errors import SECTION, UserError
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.plain_text import check_text
from fedcollm.modalities.text.examples import TextExample

#: Column or field that holds the text in files that have columns, and in data sets of the hub.
COLUMN = "text"

#: Name of a text that comes with the installation to the function that returns its lines.
TEXTS: Mapping[str, Callable[[], list[str]]] = {"icd10": other_descriptions}


def load_text(name: str) -> list[str]:
    """Return the paragraphs of a public text, in their order.

    Args:
        name: a key of `TEXTS`; a `.txt` file in UTF-8, one paragraph per line; a table, such as a `.jsonl`, `.csv` or
            `.parquet` file, with a column `text`; or the id of a data set on the hub, whose training split has one.

    Raises:
        UserError: there is no such text, or it can't be read.
    """
    if name in TEXTS:
        return TEXTS[name]()
    path = Path(os.path.expanduser(name))  # leaves a user that does not exist as it is
    if path.suffix == ".txt":
        return _lines(path)
    if ending_of(path):
        return [_text(row, place) for place, row in file_rows(path, Reading(columns=(COLUMN,)))]
    if os.path.exists(path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"{SECTION}heal.text: {name} is not a text. Give one of {', '.join(TEXTS)}, a .txt file, a "
            f"table ({KNOWN}) with a column {COLUMN!r}, or a data set of the hub (OWNER/NAME)."
        )
    return _of_hub(name)


def _of_hub(name: str) -> list[str]:
    parts: Any = download(f"{SECTION}heal.text", name, None, f"give an existing file, or one of {', '.join(TEXTS)}")
    if "train" not in parts:
        raise UserError(
            f"{SECTION}heal.text: the data set {name} has no split 'train'. Save its text as a file, and give that."
        )
    return [_text(row, f"{name}, row {number}") for number, row in enumerate(parts["train"], start=1)]


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{SECTION}heal.text: {path} can't be read ({error}). Give an existing file in UTF-8."
        ) from None
    for number, line in enumerate(lines, start=1):
        check_text(line, f"{path}: line {number}")
    return lines


def _text(row: Mapping[str, Any], place: str) -> str:
    value = row.get(COLUMN)
    if not isinstance(value, str):
        raise UserError(f"{place}: column {COLUMN!r} holds {shorten(value)}. Each row needs text in it.")
    check_text(value, f"{place}: column {COLUMN!r}")
    return value


def pieces(paragraphs: list[str], words: int, seed: int) -> list[TextExample]:
    """Cut paragraphs into distinct pieces, and shuffle them.

    A piece is an example whose prompt is its first word and whose answer is the rest, so that every token after the
    first word is a supervised row. Pieces of a single word are left out, since nothing precedes their tokens.

    Args:
        paragraphs: the text.
        words: longest piece, in words.
        seed: seed of the order.

    >>> [(piece.prompt, piece.choices[0]) for piece in pieces(["a b c d e", "f"], 3, 0)]
    [('a', 'b c'), ('d', 'e')]
    """
    split = [paragraph.split() for paragraph in paragraphs]
    cut = [part[start : start + words] for part in split for start in range(0, len(part), words)]
    texts = dict.fromkeys(" ".join(part) for part in cut if len(part) > 1)
    order = sorted(texts)
    random.Random(seed).shuffle(order)
    return [_piece(number, *text.split(" ", 1)) for number, text in enumerate(order)]


def _piece(number: int, first: str, rest: str) -> TextExample:
    return TextExample(str(number), first, (rest,), 0, (rest,))
