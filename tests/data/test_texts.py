"""Public text for healing."""

import json

import pytest

from fedcollm.data.sources.icd10 import load_icd10, other_descriptions
from fedcollm.data.texts import load_text, pieces
from fedcollm.errors import UserError


def test_descriptions_that_the_task_uses_are_not_in_its_text():
    used = {example.prompt.removesuffix(":") for example in load_icd10(10_000, 0).train}
    text = other_descriptions()
    assert len(used) > 5000
    assert len(text) > 50_000
    assert not used & set(text)


def test_a_text_file_has_a_paragraph_per_line(tmp_path):
    (tmp_path / "some.txt").write_text("one two\n\nthree\n", encoding="utf-8")
    assert load_text(str(tmp_path / "some.txt")) == ["one two", "", "three"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_file_with_columns_has_its_text_in_the_column_text(tmp_path, suffix):
    path = tmp_path / f"some{suffix}"
    rows = [{"id": "1", "text": "one two"}, {"id": "2", "text": "three"}]
    lines = [json.dumps(row) for row in rows] if suffix == ".jsonl" else ["id,text", "1,one two", "2,three"]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert load_text(str(path)) == ["one two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"words": "x"}\n', "line 1.*column 'text'"),
        ("a.txt", None, "a.txt can't be read"),
        ("a.pdf", "x", "a.pdf is not a text"),
    ],
)
def test_what_is_no_text_is_the_users_error(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_text(str(tmp_path / name))


def test_a_data_set_that_is_not_on_the_hub_is_the_users_error():
    with pytest.raises(UserError, match="no_such/data"):
        load_text("no_such/data")


def test_long_paragraphs_are_cut_and_equal_pieces_stand_once():
    found = pieces(["a b c d e f g", "a b c", "x"], 3, seed=0)
    assert sorted((piece.prompt, piece.choices) for piece in found) == [("a", ("b c",)), ("d", ("e f",))]


def test_the_order_depends_on_the_seed_only():
    words = [f"w{i} x" for i in range(20)]
    assert pieces(words, 2, 1) == pieces(list(reversed(words)), 2, 1)
    assert pieces(words, 2, 1) != pieces(words, 2, 2)


@pytest.mark.parametrize("name", ["~nosuchuser/x.txt", "~nosuchuser/x", "~nosuchuser/x.jsonl", "a/" + "b" * 300])
def test_a_path_that_can_be_none_is_the_users_error(name):
    with pytest.raises(UserError, match=r"b{300}|nosuchuser"):
        load_text(name)
