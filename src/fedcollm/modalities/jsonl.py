"""Read JSON lines files strictly: every error names the file and the line."""

import json
from pathlib import Path
from typing import Any, cast

from fedcollm.errors import UserError
from fedcollm.modalities.bounded import bounded_rows, read_bytes


def read_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return (line number, object) for each line of a JSON lines file, compressed or not. Blank lines are skipped.

    Raises:
        UserError: the file can't be read, a line is not a JSON object, or there are none, or more than
            `bounded.MOST_ROWS` lines.
    """
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(bounded_rows(path, read_bytes(path).split(b"\n")), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            row = json.loads(text) if text.strip() else None
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            raise UserError(
                f"{path}, line {number}: not valid JSON ({error}). Write one JSON object per line."
            ) from None
        if text.strip() and not isinstance(row, dict):
            raise UserError(
                f"{path}, line {number}: {shorten(row)} is not a JSON object. Write one JSON object per line."
            )
        if row is not None:
            rows.append((number, cast("dict[str, Any]", row)))
    if not rows:
        raise UserError(f"{path} is empty. Write one JSON object per line.")
    return rows


def shorten(value: Any) -> str:
    """Return the repr of a value for messages, cut to 80 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # ValueError: a whole number of too many digits
        text = f"a {type(value).__name__} that is nested too deeply, or a number that is too long, to be shown"
    return text if len(text) <= 80 else f"{text[:77]}..."
