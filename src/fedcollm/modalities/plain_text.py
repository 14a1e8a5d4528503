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
    if "\0" in text:
        return "a null character (U+0000)"
    odd = next((sign for sign in text if "\ud800" <= sign <= "\udfff"), None)
    return None if odd is None else f"half of a character (the lone surrogate U+{ord(odd):04X})"


def check_text(value: Any, what: str) -> None:
    """Check that a value from a file holds no text that can't be used; lists and objects are searched.

    Args:
        value: any value of JSON.
        what: where it stands, for the message.

    Raises:
        UserError: a text has a lone surrogate or a null character.
    """
    if isinstance(value, str):
        if reason := fault(value):
            raise UserError(f"{what} holds {shorten(value)}, with {reason}. Correct it: write text in valid UTF-8.")
    elif isinstance(value, dict):
        for key, part in cast("dict[Any, Any]", value).items():
            check_text(key, what)
            check_text(part, what)
    elif isinstance(value, list):
        for part in cast("list[Any]", value):
            check_text(part, what)
