"""Damaged files of a run directory: each is named, whatever is wrong with it."""

import json

import pytest
from tests.report.conftest import CONFUSION, DATA, ENVIRONMENT

from fedcollm.errors import UserError
from fedcollm.runs.directory import read_json, read_records

GOOD = {
    "environment.json": ENVIRONMENT,
    "data.json": DATA,
    "confusion.json": CONFUSION,
    "confusion_start.json": CONFUSION,
    "exhibits_start.json": [],
    "exhibits.json": [],
    "outcomes.json": {"slm": {"1": 0.5}},
    "started.json": {"rounds": 3},
    "personal.json": {"round": 3, "scores": {"0": 0.5}},
}
DEEP = "[" * 100_000 + "]" * 100_000
NESTED = '{"a": ' * 500 + "1" + "}" * 500

DAMAGES = {
    "environment.json": [{"parameters": 5}, {"parameters": {"slm": 5}}, {"dtype": {"slm": []}}, {"healed": []}],
    "data.json": [{}, {**DATA, "clients": [1]}, {**DATA, "clients": {"0": 5}}, {**DATA, "public": {"a": "x"}},
                  {**DATA, "test": "many"}, {**DATA, "test": -1}, {**DATA, "test": 10**30}, {**DATA, "notes": 5},
                  {**DATA, "notes": "text"}],
    "confusion.json": [{"slm": 5}, {"slm": [1]}, {"slm": [["a", "b"]]}, {"slm": [["a", "b", "c"]]},
                       {"slm": [[1, 2, 3]]}],
    "outcomes.json": [{"slm": 5}, {"slm": {"1": "right"}}],
    "started.json": [{}, {"rounds": "3"}],
    "personal.json": [{}, {"round": 1, "scores": 5}],
    "exhibits.json": [],
}  # fmt: skip


def test_what_a_run_wrote_is_read(tmp_path):
    for name, value in GOOD.items():
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")
        assert read_json(tmp_path, name) == value
        assert read_json(tmp_path / "elsewhere", name) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, text) for name in GOOD for text in ("", "{", "5", '"a"', DEEP, NESTED, '{"a": "\\ud800"}', "\ufeff[")]
    + [(name, json.dumps(value)) for name, values in DAMAGES.items() for value in values],
    ids=lambda value: value[:40],
)
def test_damaged_files_are_named(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_json(tmp_path, name)
    assert str(error.value).startswith(f"{tmp_path / name} is not a file that this version of fedcollm wrote: ")
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_files_that_are_not_utf8_are_named(tmp_path):
    for name in (*GOOD, "identity.json"):
        (tmp_path / name).write_bytes(b"\xff\xfe")
        with pytest.raises(UserError, match=name):
            read_json(tmp_path, name)


@pytest.mark.parametrize("line", ["5", "{", DEEP, '{"round": []}', ""])
def test_damaged_records_are_named(tmp_path, line):
    (tmp_path / "rounds.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"rounds\.jsonl is not a file that this version of fedcollm wrote"):
        read_records(tmp_path)
