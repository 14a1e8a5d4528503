"""The command `audit`, from a table with one thing wrong of each kind to its cleaned copy."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest

from fedcollm.cli.app import main
from fedcollm.data.audit import personal
from fedcollm.data.audit.findings import Record
from fedcollm.data.audit.fingerprints import SCHEME
from fedcollm.data.audit.profiles import Item, Profile, item_of_record, length_counts, sketch_counts

FALL = "Pain in the left knee after a fall from a horse, cannot bend the leg"
ROWS = [
    (FALL, "knee"),
    (FALL, "knee"),
    (f"{FALL}!", "heart"),
    ("", "heart"),
    ("call 03-1234-5678 for <script>alert(1)</script> [red]pain[/red]", "heart"),
    *((f"the heart beats fast, and the pulse is {part}", "heart") for part in ("high", "low", "odd", "lost")),
    *((f"the knee hurts while {part}", "knee") for part in ("walking", "running", "resting", "sitting")),
]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(personal, "_by_presidio", lambda text: iter(()))
    file = tmp_path / "notes.jsonl"
    file.write_text("".join(json.dumps({"note": note, "kind": kind}) + "\n" for note, kind in ROWS))
    return file


def audit(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["fedcollm", "audit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0, capsys.readouterr()


@pytest.fixture
def offline(monkeypatch):
    """Nothing connects to anything, by whatever library."""

    def refuse(*arguments, **options):
        raise AssertionError(f"connects to {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


FOUND = {"empty": 1, "conflict": 1, "duplicate": 1, "garbled": 1, "personal": 1}


def test_audit_shows_reports_and_applies_and_sends_nothing(data, offline, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    code, said = audit(monkeypatch, capsys, data, "--out", out, "--json")
    assert (code, json.loads(said.out)["findings"], json.loads(said.out)["records"]) == (0, FOUND, 13)
    page = (out / "audit.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    code, said = audit(monkeypatch, capsys, data, "--apply", out / "findings.csv")
    assert (code, "3 changes" in said.out) == (0, True)
    lines = [json.loads(line)["note"] for line in (tmp_path / "notes-clean.jsonl").read_text().splitlines()]
    assert lines[:3] == [FALL, f"{FALL}!", "call [PHONE] for <script>alert(1)</script> [red]pain[/red]"]
    assert len(lines) == 11
    assert (tmp_path / "notes-clean-changes.csv").read_text().count("\n") == 4


def test_audit_prints_what_it_found(data, monkeypatch, capsys):
    code, said = audit(monkeypatch, capsys, data, "--without", "labels,language")
    assert code == 0
    for part in ("13 records: 4 should be looked at", "Exact duplicate", "notes.jsonl, line 2: the same as", "[PHONE]"):
        assert part in said.out


def test_audit_by_a_configuration_knows_the_longest_text(data, model_directories, tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.yaml"
    slm = model_directories["slm"]
    config.write_text(
        "name: notes\ntask: {path: notes.jsonl, max_length: 12, format: {prompt: '{note}', answer: kind, "
        f"choices: [heart, knee]}}}}\nslm: {{source: {slm}, layers: null, heal: null}}\nllm: {{source: {slm}}}\n"
    )
    code, said = audit(monkeypatch, capsys, data, "--config", config, "--only", "long", "--json")
    assert (code, json.loads(said.out)["findings"]) == (0, {"long": 3})


def test_audit_refuses(data, tmp_path, monkeypatch, capsys):
    for arguments, word in (
        ((tmp_path / "none.csv",), "no such file"),
        ((data, "--only", "labels,luck"), "luck"),
        ((data, "--rule", "luck"), "luck"),
        ((data, "--apply", data), "findings"),
        ((data, "--apply", data, "--out", tmp_path / "copy"), "--out"),
        ((data, "--only", "labels", "--without", "labels, empty"), "nothing to look for"),
    ):
        code, said = audit(monkeypatch, capsys, *arguments)
        assert (code, word in said.err) == (2, True), said.err


def _item(note: str) -> Item:
    item = item_of_record(Record(Path(), 1, "", note), "text")
    assert item is not None
    return item


@pytest.fixture
def federation(tmp_path):
    """The profile of a federation in which the client of `ROWS` has 12 of 212 examples, and nobody else its notes."""
    items = [_item(note) for note, _ in ROWS if note]
    sketch = sketch_counts(items, 256) + np.repeat([1, 0], [100, 156]) * 2
    lengths = length_counts(items, "text")
    lengths[7] += 200
    labels = {"knee": 6, "heart": 106, "[red]<script>lung": 100}
    made = Profile(
        scheme=SCHEME,
        kind="text",
        clients=3,
        examples=212,
        labels=labels,
        lengths=lengths.tolist(),
        sketch=sketch.tolist(),
    )
    (tmp_path / "profile.json").write_text(made.text())
    return tmp_path / "profile.json"


def test_data_beside_its_federation(data, federation, tmp_path, monkeypatch, capsys, offline):
    asked = data, "--only", "empty", "--federation", federation
    code, said = audit(monkeypatch, capsys, *asked, "--out", tmp_path / "out")
    assert (code, "12 records beside 212 examples of 3 clients" in said.out) == (0, True)
    assert "46 % of your records are 'knee', 3 % of the federation's: more than chance explains" in said.out
    assert "0 % of your records are '[red]<script>lung', 47 % of the federation's" in said.out
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "Beside the federation" in page
    assert "<script>lung" not in page
    _, said = audit(monkeypatch, capsys, *asked, "--json")
    found = json.loads(said.out)["federation"]
    assert found["unit"] == "characters"
    assert [(row["name"], row["own"]) for row in found["labels"][:2]] == [("knee", 6), ("heart", 7)]
    assert found["copies"]["records"] < 2 * found["copies"]["standard_error"]
    federation.write_text(federation.read_text().replace('"text"', '"audio_files"'))
    code, said = audit(monkeypatch, capsys, *asked)
    assert (code, "of the kind audio_files" in said.err) == (2, True)
