"""What people see while a command works: nested bars, what is being done between them, and the time left."""

import io
import time

import pytest
from rich.console import Console
from rich.progress import BarColumn

from fedcollm import metrics, progress
from fedcollm.progress import counting, say, shown, track


def terminal(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False)


def rendered(console: Console) -> str:
    """What the bars show at this moment, line by line."""
    display = progress._display.get()
    assert isinstance(display, progress._Bars)
    plain = Console(file=io.StringIO(), width=console.width, color_system=None)
    with plain.capture() as captured:
        plain.print(display.progress.get_renderable())
    return "\n".join(" ".join(line.replace("━", "").split()) for line in captured.get().splitlines())


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_loops_are_bars_one_below_the_other(clock):
    console = terminal()
    with shown(console), counting("rounds", 5, done=2) as round_done:
        clock[0] += 60
        round_done()  # round 3, after a resumption: 60 s for each of the two that are left
        clock[0] += 10
        with counting("distillation", 4) as step:
            clock[0] += 2
            step()
            metrics.emit(metrics.Step("d", 1, 4, {"slm": 0.5}, 0.1, 8, 1.0, {}))
            lines = [line.replace("╺", "").replace("╸", "")[2:] for line in rendered(console).splitlines()]
    assert lines == ["rounds 3/5 1:48 left", "distillation 1/4 0:06 left loss: slm 0.500"]


def test_what_is_being_done_shows_until_there_is_a_bar():
    console = terminal()
    with shown(console):
        assert "starting" in rendered(console)
        say("loading the model")
        assert "loading the model" in rendered(console)
        for _ in track([1], "scoring", total=1):
            assert "scoring" in rendered(console)
            assert "loading" not in rendered(console)
        assert "working" in rendered(console)


def test_narrow_terminal_gets_the_count_and_the_time():
    console = terminal(width=40)
    with shown(console):
        for _ in track(range(3), "distillation", total=3):
            assert rendered(console)[2:] == "distillation 0/3 0:00 so far"
            assert not any(isinstance(column, BarColumn) for column in progress._columns(console))
            break


def test_without_a_terminal_a_line_every_twenty_seconds(clock):
    file = io.StringIO()
    with shown(Console(file=file, width=100)), counting("rounds", 4) as step:
        clock[0] += 15
        step()
        clock[0] += 15
        step()
        clock[0] += 5
        step()
        clock[0] += 40
        step()  # the last one: nothing is left
    assert file.getvalue() == "rounds: 2/4, 30 s left\n"


def test_loop_that_fails_takes_its_bar_away():
    console = terminal()
    with shown(console):
        with pytest.raises(ValueError, match="odd"), counting("rounds", 2):
            raise ValueError("odd")
        assert "rounds" not in rendered(console)
