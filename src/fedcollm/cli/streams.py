"""Standard output and standard error as they come: consoles without our signs, full disks, and pipes that end early."""

import codecs
import contextlib
import io
import sys
from collections.abc import Generator, Mapping
from typing import Any, TextIO, cast

from fedcollm.errors import UserError
from fedcollm.printing import printable

#: Exit status where the reader of standard output has gone, as in `fedcollm init icd10 | head -3`: 128 + SIGPIPE.
READER_GONE = 141

#: What a console shows in place of a sign that its encoding lacks; for any other sign, a question mark.
_IN_ASCII: Mapping[str, str] = {
    "α": "alpha",
    "β": "beta",
    "δ": "delta",
    "ε": "epsilon",
    "θ": "theta",
    "λ": "lambda",
    "τ": "tau",
    "ω": "omega",
    "Σ": "sum",
    "×": "x",
    "–": "-",
    "—": "-",
    "±": "+-",
    "≥": ">=",
    "≤": "<=",
    "→": "->",
    "⇄": "<->",
    "…": "...",
}


def spelled_out(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for signs that an encoding lacks, and where to go on: an error handler for `codecs`.

    >>> spelled_out(UnicodeEncodeError("ascii", "a α≥ħ", 2, 5, "no such sign"))
    ('alpha>=?', 5)
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(sign, "?") for sign in signs), error.end


class _Stream:
    """A stream that is another one, except for what its subclasses define.

    What is printed may come from another party, so that its control characters become spaces. The consoles of rich
    have controls of their own, and see to the texts themselves: they take `rich_proxied_file` for the stream.

    Args:
        stream: the stream to write to.
        returns: whether carriage returns are passed on.
        raw: whether all is passed on.
    """

    def __init__(self, stream: TextIO, returns: bool = False, raw: bool = False):
        self._stream, self._returns, self._raw = stream, returns, raw

    @property
    def rich_proxied_file(self) -> TextIO:
        """The same stream, with controls."""
        return cast(TextIO, self if self._raw else type(self)(self._stream, raw=True))

    def _safe(self, text: str) -> str:
        return text if self._raw else printable(text, self._returns)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Output(_Stream):
    """Standard output whose failures are one message."""

    def write(self, text: str) -> int:
        """Write text.

        Raises:
            UserError: there is no space, or the device refuses.
            SystemExit: the reader has gone.
        """
        with self._said():
            return self._stream.write(self._safe(text))

    def flush(self) -> None:
        """Write what is still in the buffer; errors as in `write`."""
        with self._said():
            self._stream.flush()

    @contextlib.contextmanager
    def _said(self) -> Generator[None, None, None]:
        try:
            yield
        except BrokenPipeError:
            _discard_output()
            raise SystemExit(READER_GONE) from None
        except OSError as error:
            _discard_output()
            raise UserError(
                f"standard output can't be written: {error}. Send it elsewhere. What a run has saved is intact."
            ) from None


class _Progress(_Stream):
    """Standard error whose failures are ignored, so that a run outlives the terminal that shows its progress."""

    def write(self, text: str) -> int:
        """Write text if possible."""
        with contextlib.suppress(OSError):
            self._stream.write(self._safe(text))
        return len(text)

    def flush(self) -> None:
        """Write what is still in the buffer if possible."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def _discard_output() -> None:
    """Let nothing be written to standard output any more, not even at the end of the process."""
    sys.stdout = io.StringIO()


@contextlib.contextmanager
def lasting_streams() -> Generator[None, None, None]:
    """Let standard output and error in the block write every sign and outlast what they write to.

    Pipes and files get UTF-8, because `load_config` reads UTF-8. A terminal with another encoding gets its own, with
    ASCII names in place of signs that it lacks.

    Raises:
        UserError: what the block wrote to standard output could not be written.
        SystemExit: the reader of standard output has gone.
    """
    codecs.register_error("spelled_out", spelled_out)
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            if stream.isatty():
                stream.reconfigure(errors="spelled_out")
            else:
                stream.reconfigure(encoding="utf-8")
    output = _Output(sys.stdout)
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, _Progress(sys.stderr, returns=True))
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    finally:
        sys.stderr = before[1]
        if cast(Any, sys.stdout) is output:  # it has not failed
            sys.stdout = before[0]
