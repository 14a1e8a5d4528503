"""Rows of text files: endings, compression, encodings, delimiters, forms of JSON, and what is said of broken ones."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from fedcollm.config import FormatConfig
from fedcollm.data.tables import Reading, ending_of, file_rows
from fedcollm.errors import UserError

ROWS = [{"text": "fièvre, 39°", "label": "flu"}, {"text": "cough", "label": "cold"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'text,label\n"fièvre, 39°",flu\ncough,cold\n'
COLUMNS = Reading(columns=("text", "label"))


def rows(path: Path, content: bytes | str, reading: Reading = COLUMNS) -> list[dict[str, object]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [row for _, row in file_rows(path, reading)]


def said(path: Path, content: bytes | str, reading: Reading = COLUMNS) -> str:
    with pytest.raises(UserError) as error:
        rows(path, content, reading)
    return str(error.value)


TEXTS = {
    "x.jsonl": LINES,
    "x.ndjson": LINES,
    "X.JSONL": LINES,
    "lines.json": LINES,
    "array.json": json.dumps(ROWS, indent=2),
    "array.jsonl": json.dumps(ROWS),
    "data.json": json.dumps({"version": 1, "data": ROWS}, indent=2),
    "oneline.json": json.dumps({"data": ROWS}),
    "x.csv": CSV,
    "X.Csv": CSV,
    "semicolons.csv": CSV.replace(",", ";"),
    "pipes.csv": CSV.replace(",", "|"),
    "tabs.csv": CSV.replace(",", "\t"),
    "x.tsv": CSV.replace(",", "\t"),
    "commas.tsv": CSV,
    "crlf.csv": CSV.replace("\n", "\r\n"),
    "cr.csv": CSV.replace("\n", "\r"),
    "blank.csv": "\n" + CSV.replace("\n", "\n\n\n"),
    "header.csv": CSV.replace("text,label", " text , label "),
    "cr.jsonl": LINES.replace("\n", "\r"),
    "bom.csv": "\ufeff" + CSV,
    "bom.jsonl": "\ufeff" + LINES,
}


@pytest.mark.parametrize("packed", ["", ".gz", ".ZST"])
@pytest.mark.parametrize("name", TEXTS)
def test_every_ending_and_form(tmp_path, name, packed):
    content = TEXTS[name].encode()
    if packed == ".gz":
        content = gzip.compress(content[:9], mtime=0) + gzip.compress(content[9:])  # of two members, as `cat` makes it
    elif packed:
        content = pa.Codec("zstd").compress(content, asbytes=True)
    wanted = ROWS
    sign = {"semicolons.csv": ";", "pipes.csv": "|", "tabs.csv": "\t", "x.tsv": "\t"}.get(name, ",")
    if sign != ",":
        wanted = [{"text": f"fièvre{sign} 39°", "label": "flu"}, ROWS[1]]
    assert rows(tmp_path / (name + packed), content) == wanted


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("utf-8", "utf-8-sig"),
        ("utf-8", "utf-16"),
        ("utf-8", "utf-32"),
        ("cp1252", "cp1252"),
        ("cp1252", "utf-16"),  # the mark at the beginning of the file goes before the configuration
        ("utf-16-le", "utf-16-le"),
        ("UTF-16", "utf-16"),
        ("shift_jis", "shift_jis"),
        ("gb18030", "gb18030"),
    ],
)
def test_encodings(tmp_path, encoding, written):
    text = "熱、咳" if written in ("shift_jis", "gb18030") else "fièvre"
    for name, content in (("x.csv", f"text,label\n{text},a\n"), ("x.jsonl", f'{{"text": "{text}", "label": "a"}}\n')):
        found = rows(tmp_path / name, content.encode(written), Reading(encoding, None, ("text", "label")))
        assert found == [{"text": text, "label": "a"}]


def test_bytes_that_are_no_text_are_named_with_their_line_and_likely_encodings(tmp_path):
    lines = [b"text,label", *[f"row {i},a".encode() for i in range(2, 3000)], "café,b".encode("cp1252")]
    for end in (b"\n", b"\r\n", b"\r"):
        message = said(tmp_path / "x.csv", end.join(lines))
        assert "line 3000: byte 0xE9" in message
        assert "task.format.encoding" in message
        assert "cp1252" in message
    assert "cp932" in said(tmp_path / "x.jsonl", '{"text": "発熱と咳"}\n'.encode("cp932"))
    for name, text in (("x.csv", CSV), ("x.jsonl", LINES)):
        utf_16 = said(tmp_path / name, text.replace("è", "e").replace("°", "").encode("utf-16-le"))
        assert "line 1: it has null characters" in utf_16
        assert "utf-16-le" in utf_16
    assert rows(tmp_path / "x.csv", "text,label\na\0,b\n") == [{"text": "a\0", "label": "b"}]  # refused with its row


def test_delimiter_of_the_configuration_goes_before_all_others(tmp_path):
    reading = Reading("utf-8", "^", ("text", "label"))
    assert rows(tmp_path / "x.tsv", "text^label\na\tb,c^flu\n", reading) == [{"text": "a\tb,c", "label": "flu"}]
    assert rows(tmp_path / "x.csv", "a,b;c\n1,2;3\n", Reading(columns=("a,b",))) == [{"a,b": "1,2", "c": "3"}]
    assert rows(tmp_path / "x.csv", "sep=^\r\na^b\r\n1,5^2\r\n", Reading()) == [{"a": "1,5", "b": "2"}]
    assert "line 3: 1 field, but" in said(tmp_path / "x.csv", "sep=;\na;b\n1\n")
    assert rows(tmp_path / "x.csv", "a;b\n1;2\n", Reading(columns=("b", "none"))) == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("text;with, a, comma;label\nx;y;z\n", {"text": "x", "with, a, comma": "y", "label": "z"}),
        ("a, b, c;d\n1, 2;3\n", {"a, b, c": "1, 2", "d": "3"}),
        ('\n\n"a;b",c\n1,2\n', {"a;b": "1", "c": "2"}),
        ("sep=;\na;b,c,d\n1;2\n", {"a": "1", "b,c,d": "2"}),
    ],
)
def test_delimiter_that_the_rows_fit_where_no_column_is_named(tmp_path, content, wanted):
    assert rows(tmp_path / "x.csv", content, Reading()) == [wanted]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('"Hello\tpos\nplain\tneg\nworld"\tneg\n', ['"Hello', "plain", 'world"']),  # quotes that pair by chance
        ('"Hello\tpos\nplain\tneg\n', ['"Hello', "plain"]),  # a quote that is not closed
        ('"Oh" she said\tpos\n', ['"Oh" she said']),
        ('"say ""hi"""\tpos\n"tab\there"\tneg\n', ['say "hi"', "tab\there"]),  # as Excel writes it
        ('"two\nlines"\tpos\n', ["two\nlines"]),
        ('"tab\tand\tline\nend"\tpos\n', ["tab\tand\tline\nend"]),
    ],
)
def test_quotes_in_tables_with_tabs(tmp_path, content, texts):
    found = rows(tmp_path / "x.tsv", "text\tlabel\n" + content)
    assert [row["text"] for row in found] == texts


def test_quotes_that_fit_neither_way_are_refused(tmp_path):
    assert "line 3: can't be read as CSV" in said(tmp_path / "x.tsv", 'text\tlabel\n"say ""hi"""\tpos\n"Oh" she\tneg\n')
    assert "quote is not closed" in said(tmp_path / "x.tsv", '"text"\t"label"\n"a\tb\n')


def test_key_that_stands_twice_among_many_is_found_at_once(tmp_path):
    keys = ", ".join(f'"k{i}": 1' for i in [*range(50_000), 49_999])
    assert "the key 'k49999' is there twice" in said(tmp_path / "x.jsonl", f"{{{keys}}}\n")


def test_long_fields_are_read_and_the_limit_of_the_process_stays(tmp_path):
    before = csv.field_size_limit()
    text = "w " * 70_000
    assert rows(tmp_path / "x.csv", f"text,label\n{text},a\n") == [{"text": text, "label": "a"}]
    assert csv.field_size_limit() == before
    assert "c1" in rows(tmp_path / "x.csv", ",".join(f"c{i}" for i in range(200_000)) + "\n" + "," * 199_999)[0]


def test_names_of_columns_have_one_spelling_and_columns_without_a_name_are_left_out(tmp_path):
    assert rows(tmp_path / "x.csv", "Gro\u0308\u00dfe,,\n1,2,3\n") == [{"Gr\u00f6\u00dfe": "1"}]
    assert "twice" in said(tmp_path / "x.csv", "\u00f6,o\u0308\n1,2\n")
    assert "differ only by the Unicode form" in said(tmp_path / "x.jsonl", '{"\u00f6": 1, "o\u0308": 2}')


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '{"text": {"0": "a"}, "label": {"0": "b"}}', "line 1: the file is one JSON object with ['text', 'l"),
        ("x.json", '{\n"text": ["a"],\n "label": ["b"]}', "as if they were columns"),
        ("x.json", "[1, 2]", "line 1: 1 is not a JSON object"),
        ("x.json", '[{"a": 1},\n{"a": 2}\n{"a": 3}]', "line 3: not valid JSON (Expecting ',' or ']', column 1)"),
        ("x.json", '[{"a": 1},\n{"a": }]', "line 2: not valid JSON (Expecting value, column 7)"),
        ("x.json", '[{"a": 1}\n', "not valid JSON"),
        ("x.json", '[{"a": 1}]\n{"a": 2}', "line 1: there is more after the end of the array"),
        ("x.json", '{\n"a": 1,\n"b" 2}', "line 3: not valid JSON"),
        ("x.jsonl", '{"a": 1}\n{"a": \n', "line 2: not valid JSON (Expecting value, column 6)"),
        ("x.jsonl", '{"a": 1}\n{"a": 1, "a": 2}\n', "line 2: not valid JSON (the key 'a' is there twice)"),
        ("x.jsonl", '{"a": 1}\n[1]\n', "line 2: [1] is not a JSON object"),
        ("x.jsonl", '{"a": ' + "[" * 10**5 + "]" * 10**5 + "}", "line 1: not valid JSON (it is nested too deeply)"),
        ("x.jsonl", f'{{"a": {"9" * 5000}}}', "line 1: not valid JSON"),
        ("x.csv", 'text,label\na,"b\n', "line 2: can't be read as CSV (a quote is not closed)"),
        (
            "x.csv",
            "text;label\na;b;c\n",
            "line 2: 3 fields, but the header has 2. Put quotes around text that contains s",
        ),
        ("x.csv", "text, text\na,b\n", "line 1: the header has column 'text' twice"),
        ("x.txt", "a", "x.txt has an unknown ending. Known endings: .jsonl"),
        ("x.parquet.gz", b"", "unknown ending"),
        (".csv", "a", "unknown ending"),
        ("x.csv.gz", b"no", "can't be read"),
        ("x.csv.gz", gzip.compress(CSV.encode(), mtime=0)[:-9], "can't be read"),
        ("x.csv.zst", pa.Codec("zstd").compress(CSV.encode(), asbytes=True)[:-9], "can't be read"),
        ("x.csv.zst", b"no", "can't be read"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    assert message in said(tmp_path / name, content)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.json", "x.csv.gz", "x.tsv.zst"])
def test_files_without_rows(tmp_path, name):
    for text in ("", "\n\r\n", "[]" if name == "x.json" else ""):
        content = gzip.compress(text.encode(), mtime=0) if name.endswith("gz") else text.encode()
        packed = pa.Codec("zstd").compress(content, asbytes=True) if name.endswith("zst") else content
        assert rows(tmp_path / name, packed) == []


def test_a_file_that_is_gone_or_a_directory(tmp_path):
    (tmp_path / "x.csv").mkdir()
    for name, message in (("x.csv", "can't be read"), ("y.jsonl", "no such file")):
        with pytest.raises(UserError, match=message):
            list(file_rows(tmp_path / name))


def test_numbers_that_are_no_numbers_are_read_as_pandas_writes_them(tmp_path):
    (row,) = rows(tmp_path / "x.jsonl", f'{{"a": Infinity, "b": {"7" * 400}}}')
    assert (row["a"], row["b"]) == (float("inf"), int("7" * 400))


def test_endings_are_found_in_any_case():
    names = ("a.csv", "a.CSV.GZ", "a.jsonl", "a.json", "a.Parquet", "a.arrow", "a.txt", "a", ".json")
    assert [ending_of(Path(name)) for name in names] == [
        ".csv",
        ".csv.gz",
        ".jsonl",
        ".json",
        ".parquet",
        ".arrow",
        "",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoding", "latin-9000", "no encoding of text"),
        ("encoding", "base64", "no encoding of text"),
        ("encoding", "undefined", "no encoding of text"),
        ("encoding", "utf\0", "no encoding of text"),
        ("encoding", "", "no encoding of text"),
        ("delimiter", "", "can't separate fields"),
        ("delimiter", "\\t", "can't separate fields"),
        ("delimiter", '"', "can't separate fields"),
        ("delimiter", "\n", "can't separate fields"),
    ],
)
def test_encodings_and_delimiters_are_checked_in_the_configuration(key, value, message):
    with pytest.raises(ValueError, match=message):
        FormatConfig.model_validate({"prompt": "{a}", "answer": "b", key: value})


@pytest.mark.parametrize("keys", [{}, {"boxes": "coco"}])
def test_keys_of_tables_are_for_tables(keys):
    with pytest.raises(ValueError, match="skip_unanswered is for tables"):
        FormatConfig.model_validate({**keys, "skip_unanswered": True})
