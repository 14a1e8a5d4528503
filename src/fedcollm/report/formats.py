"""Format numbers for readers."""

import math
import re


def percent(value: float | None, half_width: float | None = None) -> str:
    """Return a share in percent, with the half-width of its interval if there is one.

    >>> percent(0.6233), percent(0.6233, 0.012), percent(None)
    ('62.3%', '62.3 ± 1.2%', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}%" if half_width is None else f"{100 * value:.1f} ± {100 * half_width:.1f}%"


def points(difference: float, half_width: float | None = None) -> str:
    """Return a difference of two shares in percentage points, with the half-width of its interval if there is one.

    >>> points(0.05), points(-0.07, 0.021), points(-0.0002)
    ('+5.0', '−7.0 ± 2.1', '+0.0')
    """
    number = f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", "−")
    return number if half_width is None else f"{number} ± {100 * half_width:.1f}"


def share(value: float) -> str:
    """Return a share in percent with three significant digits, as it may be very small.

    >>> share(0.0024), share(0.125), share(0.0)
    ('0.24%', '12.5%', '0%')
    """
    return f"{100 * value:.3g}%" if value < 0.995 else f"{100 * value:.0f}%"


def byte_count(count: float) -> str:
    """Return a number of bytes in decimal units.

    >>> byte_count(0), byte_count(999), byte_count(3276800), byte_count(2.5e9)
    ('0 B', '999 B', '3.28 MB', '2.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Return a time in its two largest units.

    >>> duration(5.04), duration(65), duration(7384)
    ('5.0 s', '1 min 5 s', '2 h 3 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(number: int) -> str:
    """Return a whole number with separated thousands.

    >>> count(123456)
    '123,456'
    """
    return f"{number:,}"


def amount(number: int, noun: str) -> str:
    """Return a number of things with its noun, in the singular or the plural.

    >>> amount(1, "round"), amount(1200, "example")
    ('1 round', '1,200 examples')
    """
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def large(number: float) -> str:
    """Return a large number with three significant digits, in thousands, millions or billions.

    >>> large(500), large(63713088), large(1.345e9)
    ('500', '63.7 M', '1.34 B')
    """
    for unit in ("", " k", " M"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} B"


def power(number: float) -> str:
    """Return a small number as people write it.

    >>> power(1e-05), power(0.002)
    ('1e-5', '0.002')
    """
    return f"{number:g}".replace("e-0", "e-")


def natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key in which digits compare as numbers.

    >>> sorted(["a10", "a2", "b"], key=natural)
    ['a2', 'a10', 'b']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", text)]


def metric_title(metric: str) -> str:
    """Return the name of a metric as it begins a heading.

    >>> metric_title("word accuracy"), metric_title("ap50")
    ('Word accuracy', 'AP50')
    """
    return metric.upper() if metric[-1:].isdigit() else metric[:1].upper() + metric[1:]
