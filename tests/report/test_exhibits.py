"""The examples of a report: their order, their words, and that nothing of them becomes markup."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from tests.report.test_html import Page, browse, needs_browser

from fedcollm.errors import UserError
from fedcollm.modalities.exhibits import Answer, Exhibit, Region, to_json
from fedcollm.modalities.pictures import picture
from fedcollm.report import write_report
from fedcollm.runs.directory import EXHIBITS, EXHIBITS_START, write_json

PHOTO = picture(Image.new("RGB", (200, 100), "gray"))
CELLS = Exhibit(
    "cells",
    truth="1 red, 1 white",
    picture=PHOTO,
    regions=(Region(0.1, 0.2, 0.4, 0.8, "red"), Region(0.5, 0.5, 1.0, 1.0, "white")),
    answers={
        "slm": Answer(regions=(Region(0.1, 0.2, 0.3, 0.7, "red", 0.876),), right=False),
        "llm": Answer(regions=()),
    },
)
SPOKEN = Exhibit(
    "clip",
    "Spectrogram, 1.0 s, 0 to 8 kHz",
    "the cat sat",
    PHOTO,
    answers={
        "slm": Answer(
            "a hat sat on",
            False,
            (
                ("the", "deleted"),
                ("cat", "replaced"),
                ("hat", "replacement"),
                ("sat", "same"),
                ("on", "inserted"),
            ),
        )
    },
)
TEXT = Exhibit("q", "Roses are", "red", answers={"slm": Answer("red", True), "llm": Answer("", False)})


@pytest.fixture
def reported(make_run, make_record, tmp_path) -> Callable[..., Path]:
    """Writes the report on a run with these exhibits."""

    def write(*exhibits: Exhibit) -> Path:
        run = make_run("run", [make_record(0, 0.1, 0.3), make_record(1, 0.6, 0.7)])
        write_json(run, EXHIBITS, to_json(exhibits))
        return write_report([run], tmp_path / "page.html")

    return write


class Attributes(HTMLParser):
    """The names of all attributes in a piece of HTML."""

    def __init__(self, source: str):
        super().__init__()
        self.names: set[str] = set()
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {name for name, _ in attrs}


def _section(page: Path) -> str:
    return page.read_text(encoding="utf-8").split('<h2 id="examples">')[1].split("</section>")[0]


def test_wrong_answers_come_before_right_ones(reported):
    text = " ".join(Page(_section(reported(TEXT, SPOKEN))).text.split())
    wrong, _, right = text.partition("Right answers of the small model")
    assert "Wrong answers of the small model clip Spectrogram, 1.0 s, 0 to 8 kHz True answer the cat sat" in wrong
    assert right.strip() == "q Roses are True answer red Small model red right Large model another answer wrong"


def test_answers_before_training_stand_before_those_after_it(make_run, make_record, tmp_path):
    run = make_run("run", [make_record(0, 0.1, 0.3), make_record(1, 0.6, 0.7)])
    evil = Exhibit("q", answers={"slm": Answer("<b>blue</b>", False), "other": Answer("x")})
    write_json(run, EXHIBITS, to_json([TEXT]))
    write_json(run, EXHIBITS_START, to_json([evil, Exhibit("not shown", answers={"slm": Answer("y")})]))
    section = _section(write_report([run], tmp_path / "page.html"))
    text = " ".join(Page(section).text.split())
    assert "Small model before training: <b>blue</b> wrong✗ → after: red right Large model another" in text
    assert "<b>" not in section
    assert "before training → after the last round" in text


def test_words_have_tags_and_say_what_is_wrong(reported):
    section = _section(reported(SPOKEN))
    assert re.findall(r'<(del|ins) class="(\w+)">', section) == [
        ("del", "deleted"),
        ("del", "replaced"),
        ("ins", "replacement"),
        ("ins", "inserted"),
    ]
    text = " ".join(Page(section).text.split())
    assert "(not heard: the) (said: cat) (heard instead: hat) sat (heard but not said: on) wrong" in text


def test_regions_are_drawn_over_one_picture(reported):
    section = _section(reported(CELLS))
    assert section.count("data:image/png;base64,") == 1
    assert section.count("<use ") == 1
    # of 200 x 100: (.1, .2, .4, .8) is 20, 20, 60 wide and 60 high
    assert section.count('<rect class="true" x="20.0" y="20.0" width="60.0" height="60.0"/>') == 2
    assert section.count('<rect class="predicted"') == 1
    assert "red 88 %" in section
    assert "true: 1 red, 1 white; Small model: 1 red" in section
    assert "true: 1 red, 1 white; Large model: nothing" in section


@pytest.mark.parametrize("evil", ["</script><img src=x onerror=alert(1)>", '" onload="alert(1)', "</svg><b>&amp;"])
def test_hostile_text_stays_text(reported, evil):
    region = Region(0.0, 0.0, 1.0, 1.0, evil, 0.5)
    words = ((evil, "deleted"), (evil, "same"))
    answers = {"slm": Answer(evil, False, words), "llm": Answer(evil, True, (), (region,)), evil: Answer(evil)}
    plain = Exhibit("x" + evil, evil, evil, PHOTO, answers={"slm": Answer(evil)})
    page = reported(Exhibit(evil, evil, evil, PHOTO, (region,), answers), plain)
    section = _section(page)
    assert evil not in section
    assert " ".join(Page(section).text.split()).count(" ".join(evil.split())) >= 8
    assert set(re.findall(r"<(\w+)", section)) <= {
        *("p", "code", "h3", "ul", "li", "div", "dl", "dt", "dd", "span", "del"),
        *("img", "svg", "image", "use", "rect", "text"),
    }
    attributes = Attributes(section)
    assert attributes.names >= {"aria-label", "alt", "href"}
    assert not {name for name in attributes.names if name.startswith("on")}
    assert page.read_text(encoding="utf-8").count("</script>") == 3


def test_runs_without_exhibits_have_no_such_section(make_run, make_record, tmp_path):
    run = make_run("old", [make_record(0, 0.1), make_record(1, 0.2)])
    assert 'id="examples"' not in write_report([run], tmp_path / "page.html").read_text(encoding="utf-8")
    write_json(run, EXHIBITS, [])
    assert 'id="examples"' not in write_report([run], tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "content", [{"a": 1}, [1], 5, [[[]]], [{"id": "x", "picture": "PHN2Zz4="}], [{"id": "x", "answers": 5}]]
)
def test_a_file_that_is_none_of_ours_is_refused(make_run, make_record, tmp_path, content):
    run = make_run("odd", [make_record(0, 0.1), make_record(1, 0.2)])
    write_json(run, EXHIBITS, content)
    with pytest.raises(UserError, match=r"exhibits\.json"):
        write_report([run], tmp_path / "page.html")


@needs_browser
def test_browser_shows_them_without_a_complaint(reported):
    page, console = browse(reported(CELLS, SPOKEN, TEXT))
    assert console == []
    assert page.ids.count("picture-1-1") == 1
