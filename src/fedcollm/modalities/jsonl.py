"""JSON lines files, read strictly: every error names the file and the line."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from fedcollm.errors import UserError


def read_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return (line number, object) for each line of a JSON lines file, gzipped or not; blank lines are skipped.

    Raises:
        UserError: the file cannot be read, a line is no JSON object, or there is none.
    """
    rows = []
    for number, line in enumerate(_lines(path), start=1):
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
            rows.append((number, row))
    if not rows:
        raise UserError(f"{path} is empty. Give it one JSON object per line.")
    return rows


def _lines(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.name.endswith(".gz") else content).split(b"\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Check task.path.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be read ({error}). Check that it is a whole file and that you may read it."
        ) from None


def shorten(value: Any) -> str:
    """Return a value as messages show it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
