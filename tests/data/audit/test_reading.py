import json

import pytest
from PIL import Image

from fedcollm.config import FormatConfig
from fedcollm.data.audit.reading import read_subject
from fedcollm.errors import UserError


def read(path, **form):
    return [
        (one.place, one.text, one.label, one.fault[:20]) for one in read_subject(path, FormatConfig(**form)).records
    ]


def test_rows_of_text_whatever_is_wrong_with_them(tmp_path):
    data = tmp_path / "notes.jsonl"
    rows = [{"note": "pain", "kind": 1.0}, {"note": " ", "kind": "a"}, {"note": "x\0y", "kind": None}, {"note": [1]}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(data, prompt="{note}:", answer="kind", choices=["1", "a"]) == [
        ("notes.jsonl, line 1", "pain:", "1", ""),
        ("notes.jsonl, line 2", "", "a", ""),
        ("notes.jsonl, line 3", "x\0y", None, "column 'note' (task."),
        ("notes.jsonl, line 4", "[1]", None, "column 'note' (task."),
    ]


def test_a_missing_column_is_refused(tmp_path):
    (tmp_path / "notes.csv").write_text("note,kind\npain,a\n")
    with pytest.raises(UserError, match="no column 'text'"):
        read(tmp_path / "notes.csv", prompt="{text}", answer="kind", choices=["a", "b"])


def test_choices_of_its_own_belong_to_what_a_row_says(tmp_path):
    (tmp_path / "q.csv").write_text("q,options,a\nWhich?,x|y,A\nWhich?,v|w,B\n")
    assert [text for _, text, _, _ in read(tmp_path / "q.csv", prompt="{q}", answer="a", choices="options")] == [
        "Which?\nx|y",
        "Which?\nv|w",
    ]


def test_conversations(tmp_path):
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    (tmp_path / "t.jsonl").write_text(json.dumps({"m": talk}) + "\n" + json.dumps({"m": "no"}) + "\n")
    found = read(tmp_path / "t.jsonl", messages="m")
    assert found[0] == ("t.jsonl, line 1", "Hello", "Hi", "")
    assert found[1][3]


def test_images_of_a_table_and_of_folders(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "a" / "1.png")
    (tmp_path / "train" / "a" / "note.txt").write_text("x")
    (tmp_path / "train" / "a" / "out.png").symlink_to("/etc/hostname")
    assert [(place, label, bool(fault)) for place, _, label, fault in read(tmp_path)] == [
        ("train/a/1.png", "a", False),
        ("train/a/note.txt", "a", True),
        ("train/a/out.png", "a", True),
    ]
    (tmp_path / "rows.csv").write_text("file,kind\ntrain/a/1.png,a\ntrain/a/2.png,b\n../x.png,\n")
    assert [
        (label, bool(fault)) for _, _, label, fault in read(tmp_path / "rows.csv", image="file", answer="kind")
    ] == [
        ("a", False),
        ("b", True),
        (None, True),
    ]
