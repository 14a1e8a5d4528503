"""Every command writes to whatever standard output and error are, or says in one message that it can't."""

import io
import subprocess
import sys

import pytest

from fedcollm.cli.streams import lasting_streams, spelled_out
from fedcollm.errors import UserError

ARGUMENTS = [sys.executable, "-m", "fedcollm", "init", "icd10"]


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/full")
def test_output_that_is_full_is_one_message():
    with open("/dev/full", "w") as full:
        ended = subprocess.run(ARGUMENTS, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: standard output can't be written: [Errno 28] No space left on device. Send it elsewhere. What a run "
        "has saved is intact.\n"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of Unix")
def test_reader_that_has_gone_ends_a_command_quietly():
    process = subprocess.Popen(ARGUMENTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_errors_that_cannot_be_shown_do_not_end_a_command(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Full())
    with lasting_streams():
        print("round 1", file=sys.stderr, flush=True)
    assert isinstance(sys.stderr, Full)


def test_output_that_fails_in_the_middle_is_discarded_from_then_on(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(UserError, match="No space left"), lasting_streams():
        print("a")
    print("b")  # nowhere


@pytest.mark.parametrize(
    ("stream", "encoding", "written"),
    [
        (Terminal, "ascii", b"epsilon >= 3 ?"),
        (Terminal, "utf-8", "ε ≥ 3 ħ".encode()),
        (Terminal, "iso8859-7", b"\xe5 >= 3 ?"),  # Greek has ε
        (io.BytesIO, "ascii", "ε ≥ 3 ħ".encode()),
    ],
)
def test_signs_on_a_console_and_in_a_file(monkeypatch, stream, encoding, written):
    sink = stream()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(sink, encoding=encoding))
    with lasting_streams():
        print("ε ≥ 3 ħ", end="")
    assert sink.getvalue() == written


def test_what_is_no_encoding_error_is_passed_on():
    with pytest.raises(UnicodeDecodeError):
        spelled_out(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"))
