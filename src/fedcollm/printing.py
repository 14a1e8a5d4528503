r"""Text of other parties on its way to a terminal. All that fedcollm prints goes through `printable`.

A terminal obeys control characters: text that holds them could write a title, clear the screen, or overwrite a line
that was said before. Signs that turn the direction of writing make a line read as another one.
"""

#: C0 and C1 controls except tab and line feed, marks and overrides of direction, and separators of lines.
_UNSAFE = {
    *range(0x00, 0x09),
    *range(0x0B, 0x20),
    *range(0x7F, 0xA0),
    0x061C,
    *range(0x200E, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
    *range(0xE0000, 0xE0080),
}
_SPACES = dict.fromkeys(_UNSAFE, " ")
_EXCEPT_RETURN = {sign: space for sign, space in _SPACES.items() if sign != 0x0D}


def printable(text: str, returns: bool = False) -> str:
    r"""Return text with a space in place of every sign that a terminal would obey, except tabs and line feeds.

    Args:
        text: what is to be printed.
        returns: whether carriage returns stay too, as the progress bars of other libraries need them.

    >>> printable("a\x1b[2Jb\r\u202ec\n\td")
    'a [2Jb  c\n\td'
    """
    return text.translate(_EXCEPT_RETURN if returns else _SPACES)


def visible(text: str) -> str:
    r"""Return text on one line, with every sign that is not printable spelled out: nothing in it is hidden.

    >>> visible("a\x1b[2J\n\u202eb é")
    'a\\x1b[2J\\n\\u202eb é'
    """
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
