"""The map of a federation: its numbers, its marks, and that no name becomes markup."""

import re
from dataclasses import replace

import pytest
from tests.report.conftest import DATA
from tests.report.test_html import Page

from fedcollm.report import write_report
from fedcollm.report.federation import Federation, Member, Model, federation_of
from fedcollm.report.map_layout import MOST_BOXES, NARROW, WIDE, described, drawings
from fedcollm.report.runs import read_run
from fedcollm.runs.directory import write_json

EVIL = ("</svg><script>alert(1)</script>", '" onload="alert(1)', "a\u202eb", "&lt;b&gt;")


def svg(page: str) -> str:
    return page.split('<h2 id="map">')[1].split("</section>")[0]


def texts(federation: Federation) -> list[list[str]]:
    return [[text.content for text in one.texts] for one in drawings(federation)]


@pytest.fixture
def lossy(make_run, make_record):
    """Three rounds, in which client 1 is late twice and lost once."""
    records = [make_record(index, 0.1 * index + 0.1, 0.3) for index in range(4)]
    reasons = {1: "no answer within 60 s", 2: "no answer", 3: "tensor a is not finite"}
    records[1:] = [replace(r, participants=("0",), lost={"1": reasons[r.round]}, epsilon=1.5) for r in records[1:]]
    privacy = {"level": "client", "clip": 1, "noise_multiplier": 1, "delta": 1e-5}
    federation = {"secure_aggregation": {"enabled": True}, "aggregation": "uniform", "privacy": privacy, "rounds": 3}
    return make_run("lossy", records, federation=federation)


def test_numbers_of_a_federation(lossy):
    found = federation_of(read_run(lossy))
    assert found == Federation(
        [
            Model("llm", "Large model", "smollm2-135m", "400 k parameters, 900 tuned"),
            Model("slm", "Small model", "smollm2-135m, 10 layers", "100 k parameters, 500 tuned"),
        ],
        [Member("Client 0", 4, 3), Member("Client 1", 4, 0, late=2, lost=1)],
        labelled=3,
        bytes_down=2000,
        bytes_up=2000,
        secure=True,
        epsilon=1.5,
        delta=1e-5,
    )
    for shown in texts(found):
        for words in ("↓ 2 kB  ↑ 2 kB", "per client and round", "Client 0", "4 examples", "secure aggregation"):
            assert words in shown, words
        assert "ε = 1.5, δ = 1e-5" in shown
        assert any(text.startswith("⚠ late") for text in shown)
    assert "late in 2 rounds, lost in 1 round" in described(found)


def test_map_stands_in_the_page_twice_and_escapes_every_name(make_run, make_record, tmp_path):
    run = make_run("run", [make_record(0, 0.1, 0.3), make_record(1, 0.5, 0.6)])
    write_json(run, "data.json", DATA | {"clients": {name: {"cat": 2} for name in EVIL}})
    page = write_report([run], tmp_path / "page.html").read_text(encoding="utf-8")
    drawn = svg(page)
    assert drawn.count("<svg") == drawn.count("</svg>") == 2
    assert set(re.findall(r"<(\w+)", drawn)) <= {
        *("div", "svg", "defs", "marker", "path", "rect", "circle", "text", "title")
    }
    assert not re.search(r'\son\w+="', drawn)
    assert "\u202e" not in page
    assert page.count("</script>") == 3
    assert len(Page(page).ids) == len(set(Page(page).ids))


@pytest.mark.parametrize("number", [1, 4, 12, MOST_BOXES, MOST_BOXES + 1, 1000])
def test_nothing_is_drawn_outside_of_the_map_or_twice_in_a_place(number):
    members = [Member(f"Client {i}", i + 1, 5, late=int(i == 0)) for i in range(number)]
    models = [Model("llm", "Large model", "l", "1 M parameters"), Model("slm", "Small model", "s", "1 k parameters")]
    for drawing, width in zip(drawings(Federation(models, members, 1, 1, 10, 10)), (WIDE, NARROW), strict=True):
        assert drawing.width == width
        boxes = [box for box in drawing.boxes if box.kind.startswith("client")]
        assert len(boxes) == (number if number <= MOST_BOXES else 0)
        assert bool(drawing.dots) == (number > MOST_BOXES)
        assert len({(box.x, box.y) for box in boxes}) == len(boxes)
        assert all(box.x >= 0 and box.x + box.width <= width for box in drawing.boxes)
        assert all(box.y >= 0 and box.y + box.height <= drawing.height for box in drawing.boxes)
        assert all(0 <= x <= width and 0 <= y <= drawing.height for line in drawing.lines for x, y in line.points)
        assert all(0 <= dot.x <= width and 0 <= dot.y <= drawing.height for dot in drawing.dots)
        assert all(text.y <= drawing.height for text in drawing.texts)


def test_summary_in_the_ring_by_hand():
    members = [Member(f"c{i}", i + 1, 1, lost=int(i in (3, 4))) for i in range(100)]
    shown = texts(Federation([Model("slm", "Small model", "s", "")], members))[0]
    for words in ("100 clients", "5,050 examples", "1 to 100 each", "2 late or lost", "⚠ c3: lost in 1 round"):
        assert words in shown, words


def test_data_in_one_place_and_no_clients_have_no_map(make_run, make_record):
    records = [make_record(0, 0.1)]
    pooled = make_run("pooled", records, task={"partition": {"kind": "pooled"}})
    alone = make_run("none", records, federation={"participants": []})
    assert federation_of(read_run(pooled)) is None
    assert federation_of(read_run(alone)) is None
