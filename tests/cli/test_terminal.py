"""What other parties say is text in a terminal: it neither crashes the command nor styles anything."""

import io
import json
import sys

import pytest
import yaml
from rich.console import Console

from fedcollm.cli import app as cli
from fedcollm.cli import deploy as cli_deploy
from fedcollm.cli import terminal
from fedcollm.cli.check_tables import cost_table, measured_table
from fedcollm.cli.streams import lasting_streams
from fedcollm.cli.tables import parity_table, round_line
from fedcollm.deploy.status import Seen, Status, Written
from fedcollm.messages import RoundRecord
from fedcollm.progress import say, shown, track
from fedcollm.runs.estimate import Cost, RoleCost
from fedcollm.runs.harness import Parity
from fedcollm.runs.profile import Measured

CONTROLS = "\x1b]0;title\x07\x1b[2J\r\x9b31m\u202eb"
HOSTILE = ["[/x]", "[red]a[/red]", "[link=file:///etc]b[/link]", ":smile:", "\\[bold]", "1234 True http://c"]


@pytest.fixture
def screen(monkeypatch):
    """What a terminal with colors would get, from either console."""
    sink = io.StringIO()
    settings = {"file": sink, "force_terminal": True, "width": 200, "color_system": "truecolor"}

    def console(**options):
        return Console(**(options | settings))

    monkeypatch.setattr(terminal, "Console", console)
    return sink


def plain(text: str) -> str:
    """Text without the styles that every table has: bold, italic and dim, whatever is in it."""
    for sequence in ("\x1b[1m", "\x1b[3m", "\x1b[2;3m", "\x1b[0m"):  # of headers, titles and captions, and their end
        text = text.replace(sequence, "")
    assert "\x1b" not in text
    return text


@pytest.mark.parametrize("text", HOSTILE)
def test_tables_show_what_they_are_given(screen, text):
    tables = [
        cost_table(Cost({"slm": RoleCost(text, 100, 10, 40, 200, 40)}, 10**9, None, data_note=text)),
        parity_table(text, Parity(text, text, 1, {text: 0.5}, {text: 0.5}, {text: 0}, 0.0, "float32")),
        measured_table(Measured({}, 1.0, None, 1, None, None, None, (text,))),
        cli_deploy._table(
            Status(text, (1, 1), {text: True}, Written(text, 1, {text: Seen(text, None, text)}), None, 1)
        ),
    ]
    for table in tables:
        terminal.output().print(table)
        assert text in plain(screen.getvalue())
        screen.seek(0)
        screen.truncate()


@pytest.mark.parametrize("text", HOSTILE)
def test_failure_of_a_client_is_one_line_as_it_is(screen, text):
    line = round_line(RoundRecord(1, lost={text: text}))
    terminal.screen(silent=False).print(line, soft_wrap=True)
    assert screen.getvalue() == f"{line}\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_said_during_a_round_is_shown_as_it_is(text):
    file = io.StringIO()
    with shown(Console(file=file, width=200)):  # whatever console it is
        say(text)
    assert file.getvalue() == f"{text}\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_progress_bar_shows_its_description_as_it_is(screen, text):
    with shown(terminal.screen(silent=False)) as live:
        for _ in track([1], text, total=1):
            live.print("between")
            say(text)
    assert text in screen.getvalue()


def test_controls_in_a_text_reach_no_terminal(monkeypatch, capsys):
    sink = io.StringIO()
    colored = terminal.Console(file=sink, force_terminal=True, width=200, color_system="truecolor", markup=False)
    monkeypatch.setattr(terminal, "Console", lambda **options: colored)
    table = terminal.new_table(CONTROLS, CONTROLS, "b")
    table.add_row(CONTROLS, CONTROLS)
    with shown(terminal.screen(silent=False)) as live:
        for _ in track([1], CONTROLS, total=1):
            live.print(CONTROLS)
            live.print(round_line(RoundRecord(1, lost={CONTROLS: CONTROLS})))
            say(CONTROLS)
    terminal.output().print(table)
    assert all(part not in sink.getvalue() for part in ("\x1b]", "\x07", "\x1b[2J\r", "\x9b", "\u202e"))
    assert sink.getvalue().count("]0;title") >= 6
    assert round_line(RoundRecord(1, lost={CONTROLS: CONTROLS})).isprintable()
    with pytest.raises(SystemExit):
        cli._fail(CONTROLS, 2)
    with lasting_streams():
        print(CONTROLS)
        print(CONTROLS, file=sys.stderr)
    said, errors = capsys.readouterr()
    assert said == " ]0;title  [2J  31m b\n"
    assert errors == said + " ]0;title  [2J\r 31m b\n"


def test_consoles_keep_their_own_styles_on_a_cleaned_stream(monkeypatch):
    sink = io.StringIO()
    monkeypatch.setattr(sys, "stdout", sink)
    with lasting_streams():
        Console(force_terminal=True, color_system="truecolor").print("[bold]a[/bold]")
    assert sink.getvalue() == "\x1b[1ma\x1b[0m\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_error_says_what_the_user_wrote(monkeypatch, capsys, text):
    for arguments in (["run", text], ["compare", "icd10", "--jobs", text]):
        monkeypatch.setattr(sys, "argv", ["fedcollm", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        assert repr(text) in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[/x]", "[red]a[/red]"])
def test_command_that_does_not_exist_is_named(monkeypatch, capsys, text):
    monkeypatch.setattr(sys, "argv", ["fedcollm", text])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_run_with_a_name_that_looks_like_markup(monkeypatch, capsys, tiny_config, tmp_path):
    values = tiny_config.model_dump(mode="json") | {"name": "[x]"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    out = tmp_path / "[red]a[/red]"
    monkeypatch.setattr(sys, "argv", ["fedcollm", "run", str(tmp_path / "config.yaml"), "--out", str(out)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out
    assert json.loads((out / "rounds.jsonl").read_text().splitlines()[-1])["round"] == 2
