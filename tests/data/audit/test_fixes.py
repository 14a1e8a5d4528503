import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from fedcollm.config import FormatConfig
from fedcollm.data.audit.findings import Finding, Fix
from fedcollm.data.audit.fixes import Change, apply, changes_csv, copy_of, findings_csv, read_fixes
from fedcollm.data.audit.reading import read_subject
from fedcollm.errors import UserError

FORM = FormatConfig(prompt="{note}", answer="kind", choices=["a", "b"])


def audited(path, root, findings, form=FORM):
    """Write findings.csv, and return its place."""
    file = root / "findings.csv"
    file.write_text(findings_csv(path if path.is_dir() else path.parent, read_subject(path, form), findings))
    return file


def test_fixes_of_a_table(tmp_path):
    data = tmp_path / "notes.csv"
    original = 'note,kind,more\n=pain,a,1\n"x, y",b,2\ncough,b,3\n'
    data.write_text(original)
    found = [
        Finding("label", 0, "why", 0.9, Fix("set", "kind", "b")),
        Finding("personal", 0, "why", 0.9, Fix("set", "note", "=[NAME]")),
        Finding("duplicate", 1, "why", 1.0, Fix("drop")),
        Finding("label", 1, "why", 1.0, Fix("set", "kind", "a")),  # of a row that is dropped
        Finding("blurry", 2, "why"),
    ]
    fixes = read_fixes(audited(data, tmp_path, found))
    copy, changes = apply(data, FORM, fixes)
    assert copy == tmp_path / "notes-clean.csv"
    assert copy.read_text() == "note,kind,more\n=[NAME],b,1\ncough,b,3\n"
    assert data.read_text() == original
    lines = list(csv.DictReader(changes_csv(changes).splitlines()))
    assert [(line["row"], line["action"], line["before"], line["after"]) for line in lines] == [
        ("1", "set", "a", "b"),
        ("1", "set", "'=pain", "'=[NAME]"),  # no spreadsheet takes it for a formula
        ("2", "drop", json.dumps({"note": "x, y", "kind": "b", "more": "2"}), ""),
    ]
    with pytest.raises(UserError, match="there already"):
        apply(data, FORM, fixes)


def test_findings_of_other_data_are_refused(tmp_path):
    data = tmp_path / "notes.jsonl"
    data.write_text('{"note": "pain", "kind": "a"}\n')
    fixes = read_fixes(audited(data, tmp_path, [Finding("label", 0, "why", 0.9, Fix("set", "kind", "b"))]))
    data.write_text('{"note": "pain", "kind": "b"}\n')
    with pytest.raises(UserError, match="any more"):
        apply(data, FORM, fixes)
    with pytest.raises(UserError, match="row 7"):
        apply(data, FORM, [fixes[0]._replace(row=7)])
    with pytest.raises(UserError, match="no file"):
        apply(data, FORM, [fixes[0]._replace(file="other.csv")])
    assert not copy_of(data).exists()


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n", "kind,file,row,action,column,before,after,score,detail\nx,f,1,eat,,,,1,d\n"]
)
def test_what_is_no_table_of_findings_is_refused(tmp_path, text):
    (tmp_path / "odd.csv").write_text(text)
    with pytest.raises(UserError, match=r"findings|proposes"):
        read_fixes(tmp_path / "odd.csv")


def test_fixes_of_a_folder_of_images(tmp_path):
    from PIL import Image

    for name in ("train/a/1.png", "train/a/2.png", "train/b/3.png", "test/a/4.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / name)
    data = tmp_path / "data"
    found = [Finding("duplicate", 1, "why", fix=Fix("drop")), Finding("label", 2, "why", fix=Fix("set", "", "a"))]
    copy, changes = apply(data, FormatConfig(), read_fixes(audited(data, tmp_path, found, FormatConfig())))
    assert sorted(file.relative_to(copy).as_posix() for file in copy.rglob("*.png")) == [
        "test/a/4.png",
        "train/a/1.png",
        "train/a/3.png",
    ]
    assert [(one.action, one.before, one.after) for one in changes] == [("drop", "a", ""), ("set", "b", "a")]
    with pytest.raises(UserError, match="class folder"):
        apply(data.rename(tmp_path / "again"), FormatConfig(), [changes[1]._replace(after="../../out")])


def test_fixes_of_a_directory_of_tables(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.tsv").write_text("note\tkind\npain\ta\ncough\tb\n")
    (data / "test.csv").write_text("note,kind\nache,a\n")
    fixes = read_fixes(audited(data, tmp_path, [Finding("duplicate", 0, "why", fix=Fix("drop"))]))
    copy, _ = apply(data, FORM, fixes)
    assert (copy / "train.tsv").read_text() == "note\tkind\ncough\tb\n"
    assert (copy / "test.csv").read_text() == "note,kind\nache,a\n"


def images_in(folder, *names):
    """Make images of different colors, and return their folder."""
    from PIL import Image

    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, i, i)).save(folder / name)
    return folder


def test_image_that_moves_to_another_class_overwrites_none_of_the_same_name(tmp_path):
    data = images_in(tmp_path / "data", "train/a/1.png", "train/b/1.png", "train/b/1-2.png")
    found = [Finding("label", 0, "why", fix=Fix("set", "", "b"))]
    copy, _ = apply(data, FormatConfig(), read_fixes(audited(data, tmp_path, found, FormatConfig())))
    contents = {file.read_bytes() for file in copy.rglob("*.png")}
    assert contents == {file.read_bytes() for file in data.rglob("*.png")}
    assert len(contents) == 3


def test_table_with_fixes_overwrites_no_other(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train-clean.csv").write_text("note,kind\npain,a\ncough,b\n")
    (data / "train.csv").write_text("note,kind\nache,a\n")
    fixes = [Change("train-clean.csv", 1, "drop", "", "", "")]
    copy, _ = apply(data, FORM, fixes)
    assert (copy / "train-clean.csv").read_text() == "note,kind\ncough,b\n"
    assert (copy / "train.csv").read_text() == "note,kind\nache,a\n"
    (data / "train.json").write_text('[{"note": "pain", "kind": "a"}, {"note": "cough", "kind": "b"}]')
    (data / "train.jsonl").write_text('{"note": "ache", "kind": "a"}\n')
    shutil.rmtree(copy)
    with pytest.raises(UserError, match="two files"):
        apply(data, FORM, [Change("train.json", 1, "drop", "", "", "")])
    assert not copy.exists()


@pytest.mark.parametrize(
    "edited",
    [
        {"row": "9" * 5000},
        {"row": "1", "file": "train/a/1.png"},
        {"after": "b\0"},
        {"after": "c" * 300},
        {"after": "."},
        {"file": "loose.png"},  # moved, it would leave the copy
    ],
)
def test_edited_findings_leave_no_half_of_a_copy(tmp_path, edited):
    data = images_in(tmp_path / "data", "train/a/1.png", "train/b/1.png", "loose.png")
    line = {"kind": "label", "file": "train/b/1.png", "row": "0", "action": "set", "column": "", "before": "b"}
    line |= {"after": "a", "score": "1", "detail": "", **edited}
    table = tmp_path / "findings.jsonl"
    table.write_text(json.dumps(line))
    with pytest.raises((UserError, OSError)):
        apply(data, FormatConfig(), read_fixes(table))
    assert [path.name for path in tmp_path.iterdir() if path not in (data, table)] == []


def test_copy_of_the_directory_that_one_is_in_stands_beside_it(tmp_path, monkeypatch):
    data = images_in(tmp_path / "data", "train/a/1.png", "train/b/1.png")
    monkeypatch.chdir(data)
    fixes = [Change("train/b/1.png", 0, "drop", "", "b", "")]
    copy, _ = apply(Path("."), FormatConfig(), fixes)
    assert copy == tmp_path / "data-clean"
    assert copy_of(Path("train/..")) == copy


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_only_the_owner_can_enter_the_copy(tmp_path):
    data = images_in(tmp_path / "data", "train/a/1.png", "train/b/1.png")
    copy, _ = apply(data, FormatConfig(), [Change("train/b/1.png", 0, "drop", "", "b", "")])
    assert copy.stat().st_mode & 0o077 == 0
