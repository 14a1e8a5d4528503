"""Generated files of every format, against plain readers of a few lines that are written here.

A small number of files by default. For a longer run, set the number of files per kind:

    FEDCOLLM_GENERATED=2000 scripts/check tests tests/data/test_generated_files.py
"""

import datetime
import gzip
import json
import math
import os
import tempfile
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fedcollm.config import FormatConfig
from fedcollm.data.files import load_custom
from fedcollm.errors import UserError

FILES = int(os.environ.get("FEDCOLLM_GENERATED", "15"))
TEMPLATE = "Q {text}\n{note}\nA:"
LABELS = ["fie\u0300vre", "toux", "1", "2", "0", "A", "B", "se\u00f1al", "Stra\u00dfe", "x y"]
#: Encoding to signs that it can write.
SIGNS = {
    "utf-8": "a é\u0301ß漢🙂\u2028\x85\u00a0\ufeff",
    "utf-8-sig": "a é漢",
    "utf-16": "a é\u0301漢🙂\u2028",
    "utf-32": "aé🙂",
    "utf-16-be": "aé🙂",
    "cp1252": "a éß€",
    "latin-1": "a éß\x85",
    "shift_jis": "a 漢表ソ熱",
    "gb18030": "a é漢🙂",
    "koi8-r": "a щя",
}
PACKED = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".ZST": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}
CHOSEN = settings(max_examples=FILES)

Row = dict[str, Any]
Read = list[tuple[str, tuple[str, ...], int | None]] | None


# --- the plain readers: None is a refusal


def text_of(value: Any) -> str | None:
    """The text of a cell; None if it is empty. Lists and bytes that are no text raise ValueError."""
    if isinstance(value, bytes):
        value = value.decode()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (list, dict)):
        raise ValueError
    if isinstance(value, float) and math.isfinite(value) and value % 1 == 0 and abs(value) < 2**53:
        value = int(value)
    text = f"{value:f}" if isinstance(value, Decimal) else str(value)
    if "\0" in text:
        raise ValueError
    text.encode()  # lone surrogates raise
    return text if text.strip() else None


def label_of(value: Any) -> str:
    text = text_of(value)
    if text is None:
        raise ValueError
    return unicodedata.normalize("NFC", text).strip()


def index_of(rows: list[Row], choices: list[list[str]], listed: bool) -> list[int]:
    """The index of each row's answer, in the only way that fits all rows."""
    answers = [label_of(row["label"]) for row in rows]
    letters = [a in "ABCDEFGH"[: len(c)] and len(a) == 1 for a, c in zip(answers, choices, strict=True)]
    whole = [int(a) if a.isascii() and a.isdigit() else -1 for a in answers]
    ways: list[list[int]] = []
    if all(c.count(a) == 1 for a, c in zip(answers, choices, strict=True)):
        ways.append([c.index(a) for a, c in zip(answers, choices, strict=True)])
        if listed:
            return ways[0]
    if all(letters):
        ways.append([ord(a) - ord("A") for a in answers])
    for first in (0, 1):
        if all(0 <= n - first < len(c) and n >= 0 for n, c in zip(whole, choices, strict=True)):
            ways.append([n - first for n in whole])
    if ways and all(way == ways[0] for way in ways):
        return ways[0]
    if ways or listed:
        raise ValueError
    either = [
        {c.index(a)} if c.count(a) == 1 and not letter else {ord(a) - ord("A")} if letter and c.count(a) != 1 else set()
        for a, c, letter in zip(answers, choices, letters, strict=True)
    ]
    both = [
        {c.index(a), ord(a) - ord("A")} if c.count(a) == 1 and letter else one
        for a, c, letter, one in zip(answers, choices, letters, either, strict=True)
    ]
    if all(len(one) == 1 for one in both):
        return [one.pop() for one in both]
    raise ValueError


def expected(rows: list[Row], form: FormatConfig) -> Read:
    try:
        prompts: list[str] = []
        if not rows or not {"text", "note", "label"} <= {name for row in rows for name in row}:
            return None
        for row in rows:
            text, note = text_of(row.get("text")), text_of(row.get("note"))
            if text is None and note is None:
                return None
            prompts.append("\n".join([*([f"Q {text}"] * (text is not None)), *([note] if note else []), "A:"]))
        if form.choices is None:
            return [(p, (label_of(row.get("label")),), 0) for p, row in zip(prompts, rows, strict=True)]
        shared = [unicodedata.normalize("NFC", c) for c in form.choices if isinstance(form.choices, list)]
        own = [shared or [label_of(one) for one in row["choices"].split("|")] for row in rows]
        found = index_of([{"label": row.get("label")} for row in rows], own, bool(shared))
        return [(p, tuple(c), i) for p, c, i in zip(prompts, own, found, strict=True)]
    except (ValueError, OverflowError):
        return None


def parsed_csv(text: str, sign: str) -> list[Row]:
    """CSV, letter by letter."""
    records, record, field, quoted, at = [], [], "", False, 0
    while at < len(text):
        now, after = text[at], text[at + 1 : at + 2]
        if quoted and now == '"' and after == '"':
            field, at = field + '"', at + 1
        elif now == '"':
            quoted = not quoted
        elif quoted or now not in f"\r\n{sign}":
            field += now
        elif now == sign:
            record, field = [*record, field], ""
        else:
            if record or field:
                records.append([*record, field])
            record, field = [], ""
        at += 1
    if record or field:
        records.append([*record, field])
    return [dict(zip([name.strip() for name in records[0]], one, strict=True)) for one in records[1:]]


def actual(folder: str, name: str, content: bytes, form: FormatConfig) -> Read:
    path = Path(folder) / name
    path.write_bytes(content)
    try:
        pool = load_custom(path, form, several_classes=False)
    except UserError as error:
        assert name in str(error), error  # noqa: PT017  every refusal names the file
        return None
    return [(one.prompt, one.choices, one.answer) for one in pool.train]


# --- the files


@st.composite
def answered(draw: st.DrawFn, cell: st.SearchStrategy[Any], rows: int = 6) -> tuple[list[Row], FormatConfig]:
    """Rows with texts, notes and answers, and their format."""
    labels = draw(st.lists(st.sampled_from(LABELS), min_size=2, max_size=4, unique=True))
    kind = draw(st.sampled_from(["free", "listed", "own"]))
    way = draw(st.sampled_from(["text", "text", "letter", "position", "position_from_1", "any"]))
    made: list[Row] = []
    for _ in range(draw(st.integers(1, rows))):
        order = draw(st.permutations(labels)) if kind == "own" else labels
        index = draw(st.integers(0, len(labels) - 1))
        spelled = unicodedata.normalize(draw(st.sampled_from(["NFC", "NFD"])), order[index])
        ways = {
            "text": f" {spelled}",
            "letter": "ABCD"[index],
            "position": str(index),
            "position_from_1": str(index + 1),
        }
        answer = ways[draw(st.sampled_from(list(ways))) if way == "any" else way]
        made.append({"text": draw(cell), "note": draw(cell), "label": answer, "choices": " |".join(order)})
    choices = {"free": None, "listed": labels, "own": "choices"}[kind]
    return made, FormatConfig(prompt=TEMPLATE, answer="label", choices=choices)


@st.composite
def csv_files(draw: st.DrawFn) -> tuple[str, bytes, str, str, FormatConfig]:
    encoding = draw(st.sampled_from(list(SIGNS)))
    sign = draw(st.sampled_from(",;\t|"))
    rows, form = draw(answered(st.text(st.sampled_from(SIGNS[encoding] + f' b"\r\n{sign},1'), max_size=8)))
    names = draw(st.permutations([*rows[0], "more"]))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    pad = draw(st.sampled_from(["", " "]))
    lines = [[pad + name for name in names], *([row.get(name, "x") for name in names] for row in rows)]
    text = ""
    for number, line in enumerate(lines):
        always = draw(st.booleans())
        fields = [
            '"' + field.replace('"', '""') + '"' if always or set(field) & set(f'"\r\n{sign}') else field
            for field in line
        ]
        last = number == len(lines) - 1 and draw(st.booleans())
        text += sign.join(fields) + ("" if last else end * draw(st.integers(1, 2)))
    safe = "".join(one if can(one, encoding) else "?" for one in text)
    told = {"encoding": "utf-8" if encoding.startswith("utf-8") else encoding}
    if draw(st.booleans()):
        told["delimiter"] = sign
    ending = draw(st.sampled_from([".csv", ".CSV", ".tsv"]))
    return f"x{ending}", safe.encode(encoding), safe, sign, form.model_copy(update=told)


def can(sign: str, encoding: str) -> bool:
    try:
        return sign.encode(encoding).decode(encoding) == sign
    except UnicodeError:
        return False


@CHOSEN
@given(csv_files(), st.sampled_from(list(PACKED)))
def test_csv_files(made: tuple[str, bytes, str, str, FormatConfig], packed: str) -> None:
    name, content, text, sign, form = made
    with tempfile.TemporaryDirectory() as folder:
        found = actual(folder, name + packed, PACKED[packed](content), form)
    assert found == expected(parsed_csv(text.removeprefix("\ufeff"), sign), form)


GOOD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6)
PLAIN = GOOD | st.integers(-(10**30), 10**30) | st.floats() | st.booleans() | st.none()
ODD = (
    PLAIN
    | st.text(st.characters(exclude_categories=()), max_size=6)
    | st.lists(PLAIN, max_size=2)
    | st.dictionaries(st.text(max_size=2), PLAIN, max_size=2)
)


@CHOSEN
@given(st.data())
def test_json_files(data: st.DataObject) -> None:
    rows, form = data.draw(answered(data.draw(st.sampled_from([GOOD, PLAIN, PLAIN, ODD])), rows=4))
    for row in rows:
        if data.draw(st.integers(0, 3)) == 0:
            del row[data.draw(st.sampled_from(["text", "note"]))]
    how = {"ensure_ascii": data.draw(st.booleans())}
    shape = data.draw(st.sampled_from(["lines", "array", "indented", "data"]))
    if shape == "lines":
        text = data.draw(st.sampled_from(["\n", "\r\n", "\n\n \n"])).join(json.dumps(row, **how) for row in rows)
    else:
        written = {"version": 1, "data": rows} if shape == "data" else rows
        text = json.dumps(written, indent=None if shape == "array" else 1, **how)
    if not how["ensure_ascii"] and any(0xD800 <= ord(sign) < 0xE000 for sign in text):
        text = json.dumps(rows)
        shape = "array"
    ending = data.draw(st.sampled_from([".json"] if shape == "data" else [".json", ".JSON", ".jsonl", ".ndjson"]))
    packed = data.draw(st.sampled_from(list(PACKED)))
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    with tempfile.TemporaryDirectory() as folder:
        found = actual(folder, f"x{ending}{packed}", PACKED[packed](text.encode(encoding)), form)
    assert found == expected(rows, form)


#: Type of Arrow to values that it can hold.
TYPES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), GOOD),
    (pa.large_string(), st.text(max_size=6)),
    (pa.binary(), st.text(max_size=6).map(str.encode) | st.binary(max_size=3)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.float64(), st.floats() | st.integers(-9, 9).map(float)),
    (pa.float32(), st.floats(width=32)),
    (pa.bool_(), st.booleans()),
    (pa.date32(), st.dates()),
    (pa.timestamp("us"), st.datetimes()),
    (pa.time64("us"), st.times()),
    (pa.decimal128(20, 4), st.decimals(-(10**9), 10**9, places=4)),
    (pa.list_(pa.string()), st.lists(st.text(max_size=2), max_size=2)),
    (pa.dictionary(pa.int32(), pa.string()), st.text(max_size=6)),
]


def short(value: Any) -> Any:
    return float(str(np.float32(value))) if isinstance(value, float) else value


@CHOSEN
@given(st.data())
def test_parquet_and_arrow_files(data: st.DataObject) -> None:
    rows, form = data.draw(answered(st.none(), rows=4))
    columns: dict[str, pa.Array] = {}
    for name in ("text", "note"):
        kind, values = data.draw(st.sampled_from(TYPES if data.draw(st.booleans()) else TYPES[:1]))
        for row in rows:
            row[name] = data.draw(st.one_of(values, values, values, st.none()))
        columns[name] = pa.array([row[name] for row in rows], kind)
        if kind == pa.float32():
            for row in rows:
                row[name] = short(row[name])
    columns |= {name: pa.array([row[name] for row in rows]) for name in ("label", "choices")}
    table, metadata = pa.table(columns), {}
    if data.draw(st.booleans()):  # as `datasets` stores a ClassLabel
        names = sorted({row["label"] for row in rows})
        numbers = [names.index(row["label"]) for row in rows]
        table = table.set_column(2, "label", pa.array(numbers, pa.int64()))
        metadata = {
            "huggingface": json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}})
        }
    table = table.replace_schema_metadata(metadata)
    kind = data.draw(st.sampled_from(["parquet", "stream", "file"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made"
        if kind == "parquet":
            parquet.write_table(table, path, row_group_size=data.draw(st.integers(1, 3)))
        else:
            with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(path, table.schema) as sink:
                sink.write_table(table, max_chunksize=2)
        found = actual(folder, "x.parquet" if kind == "parquet" else "x.ARROW", path.read_bytes(), form)
    assert found == expected(rows, form)


def test_the_plain_readers_themselves():
    assert parsed_csv('a,b\n"x""y\n",2\n\nz,\n', ",") == [{"a": 'x"y\n', "b": "2"}, {"a": "z", "b": ""}]
    assert [text_of(one) for one in (3.0, 2.5, b"x", True, " ", None)] == ["3", "2.5", "x", "True", None, None]
    assert text_of(datetime.date(2024, 1, 2)) == "2024-01-02"
    assert index_of([{"label": 1}, {"label": "2"}], [["a", "b"]] * 2, listed=False) == [0, 1]
