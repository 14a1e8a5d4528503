"""Numbers as a reader wants them."""

import math


def percent(value: float | None, half_width: float | None = None, signed: bool = False) -> str:
    """A share as per cent, with the half-width of its interval if there is one.

    >>> percent(0.6233), percent(0.6233, 0.012), percent(0.05, signed=True), percent(None)
    ('62.3%', '62.3 ± 1.2%', '+5.0%', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    number = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    number = number.replace("-", "−")
    return f"{number}%" if half_width is None else f"{number} ± {100 * half_width:.1f}%"


def share(value: float) -> str:
    """A share that may be very small, with two significant digits.

    >>> share(0.0024), share(0.125), share(0.0)
    ('0.24%', '12%', '0%')
    """
    return f"{100 * value:.2g}%" if value < 0.995 else f"{100 * value:.0f}%"


def byte_count(count: float) -> str:
    """Bytes in decimal units.

    >>> byte_count(0), byte_count(999), byte_count(3276800), byte_count(2.5e9)
    ('0 B', '999 B', '3.28 MB', '2.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(5.04), duration(65), duration(7384)
    ('5.0 s', '1 min 5 s', '2 h 3 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(number: int) -> str:
    """A whole number with its thousands apart.

    >>> count(123456)
    '123,456'
    """
    return f"{number:,}"
