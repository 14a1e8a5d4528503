"""Texts that can be written to every file and read by every tokenizer: without lone surrogates and null characters."""

from typing import Any, cast

from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten


def fault(text: str) -> str | None:
    r"""Return why a text can't be used; None if it can.

    A lone surrogate is half of a character. JSON can spell one (``"\ud800"``), and a file name that is not UTF-8
    becomes one, but no file in UTF-8 can hold it.

    >>> fault("naïve 🙂"), fault("a\0")
    (None, 'a null character (U+0000)')
    """
    if text.isascii() and "\0" not in text:
        return None
    if "\0" in text:
        return "a null character (U+0000)"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"half of a character (the lone surrogate U+{ord(text[error.start]):04X})"
    return None


def check_text(value: Any, what: str) -> None:
    """Check that a value from a file holds no text that can't be used; lists and objects are searched.

    Args:
        value: any value of JSON.
        what: where it stands, for the message.

    Raises:
        UserError: a text has a lone surrogate or a null character.
    """
    left: list[Any] = [value]
    while left:  # without recursion, since a value may be nested as deeply as JSON can be read
        one = left.pop()
        if isinstance(one, str) and (reason := fault(one)):
            raise UserError(f"{what} holds {shorten(one)}, with {reason}. Correct it: write text in valid UTF-8.")
        if isinstance(one, dict):
            left += [part for pair in cast("dict[Any, Any]", one).items() for part in pair]
        elif isinstance(one, (list, tuple)):
            left += cast("list[Any]", one)
