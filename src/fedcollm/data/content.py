"""Decode the bytes of a file strictly: an error names the line and the byte."""

import codecs
from collections.abc import Mapping
from pathlib import Path

from fedcollm.errors import UserError

#: Byte-order mark that a file can begin with to the encoding that it stands for, the longer marks first.
_MARKS: Mapping[bytes, str] = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

#: Encodings that a message may suggest, in the order of the suggestions.
_LIKELY = ("utf-8", "cp1252", "cp932", "euc_jp", "gb18030", "big5", "euc_kr", "cp1251")

#: Size of the piece of a file that is decoded to find likely encodings, in bytes.
_TRIED_BYTES = 2**22


def decode(content: bytes, encoding: str, path: Path) -> str:
    """Return the text of a file. A byte-order mark is removed, and it goes before the encoding that is given.

    Args:
        content: the bytes of the file, decompressed.
        encoding: name of an encoding that Python knows.
        path: the file, for the message.

    Raises:
        UserError: the bytes are not text in this encoding.
    """
    marked = next((name for mark, name in _MARKS.items() if content.startswith(mark)), encoding)
    try:
        text = content.decode(marked).removeprefix("\ufeff")
    except UnicodeError as error:
        raise UserError(_not_decoded(content, marked, error, path)) from None
    if "\0" in text[: max(0, text.find("\n"))]:
        raise UserError(
            f"{path}, line 1: it has null characters, as text in UTF-16 has if it is read in another encoding. Set "
            "task.format.encoding to the encoding of the file, such as utf-16-le."
        )
    return text


def _not_decoded(content: bytes, encoding: str, error: UnicodeError, path: Path) -> str:
    advice = _advice(content, encoding)
    if not isinstance(error, UnicodeDecodeError):  # some codecs do not say where
        return f"{path}: can't be read in the encoding {encoding} ({error}). {advice}"
    before = content[: error.start].decode(encoding, errors="replace")
    line = 1 + before.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    return (
        f"{path}, line {line}: byte 0x{content[error.start]:02X} (number {error.start + 1:,} of the file) is not "
        f"text in the encoding {encoding}: {error.reason}. {advice}"
    )


def _advice(content: bytes, encoding: str) -> str:
    """Return what to do about bytes that are no text in an encoding."""
    piece = content[:_TRIED_BYTES]
    if len(content) > len(piece):
        piece = piece[: piece.rfind(b"\n") + 1]
    names = [name for name in _LIKELY if name != codecs.lookup(encoding).name and _is_text(piece, name)]
    tried = f", such as {', '.join(names)}" if names else ""
    return f"Set task.format.encoding to the encoding of the file{tried}, or save the file in UTF-8."


def _is_text(content: bytes, encoding: str) -> bool:
    try:
        text = content.decode(encoding)
    except UnicodeError:
        return False
    return not any(sign < " " and sign not in "\t\n\r\f" for sign in set(text))
