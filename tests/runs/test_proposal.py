"""A configuration for a person's own table: what is in it, and that it runs."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedcollm.config.loading import commented_yaml, load_config
from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.data.proposals import Wishes
from fedcollm.errors import UserError
from fedcollm.runs.proposal import propose

HOSPITALS, WARDS = ("東京第一病院", "大阪中央病院"), ("内科", "外科", "眼科")


def notes(count: int) -> list[list[str]]:
    return [[f"{i} 日前から咳、発熱", WARDS[i % 3], HOSPITALS[i % 2]] for i in range(count)]


def written(path: Path, rows: list[list[str]], encoding: str = "utf-8", delimiter: str = ",") -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([["所見", "診療科", "病院"], *rows])
    path.write_bytes(text.getvalue().encode(encoding))
    return path


@pytest.mark.parametrize(
    ("encoding", "found"), [("cp932", "cp932"), ("utf-8", "utf-8"), ("utf-8-sig", "utf-8"), ("utf-16", "utf-8")]
)
def test_table_in_another_encoding_runs_as_it_is_written(tmp_path, encoding, found):
    path = written(tmp_path / "診療.csv", notes(120), encoding, ";" if encoding == "cp932" else ",")
    proposal = propose(path)
    config = load_config(yaml.safe_load(commented_yaml(proposal.config)))
    assert config == proposal.config
    assert config.task.format is not None
    assert config.task.format.encoding == found
    assert (config.name, config.task.path, config.task.format.group) == ("診療", path, "病院")
    assert (config.task.clients, config.task.partition.kind) == (2, "natural")
    parts = split(load_pool(config.task, 0), config.task, 0)
    assert (len(parts.test), len(parts.public), sum(map(len, parts.private.values()))) == (24, 30, 66)
    assert [proposal.findings[0], proposal.findings[-1]] == [
        "120 rows in 診療.csv",
        "models and training are those of the preset icd10",
    ]


def test_parts_of_their_own_are_used_as_they_are(tmp_path):
    written(tmp_path / "train.csv", notes(60))
    written(tmp_path / "validation.csv", [[f"検査 {i}", "内科", ""] for i in range(9)])
    written(tmp_path / "public.csv", [[f"公開 {i}", "外科", ""] for i in range(12)])
    task = propose(tmp_path).config.task
    assert (task.test_size, task.public_size, task.unlabelled_size, task.private_size) == (9, 12, 0, 30)


def test_data_of_a_server_without_training_data_is_for_a_deployment(tmp_path):
    written(tmp_path / "test.csv", [[f"検査 {i}", "内科", ""] for i in range(9)])
    written(tmp_path / "public.csv", [[f"公開 {i}", ("外科", "内科")[i % 2], f"W{i % 2}"] for i in range(12)])
    proposal = propose(tmp_path)
    task = proposal.config.task
    assert (task.test_size, task.public_size, task.clients, task.partition.kind) == (9, 12, 4, "iid")
    assert task.format is not None
    assert task.format.group is None
    assert "`fedcollm deploy init`" in proposal.findings[-2]


def test_rows_without_an_answer_are_left_out(tmp_path):
    rows = notes(60)
    rows[7][1] = ""
    config = propose(written(tmp_path / "a.csv", rows)).config
    assert config.task.format is not None
    assert config.task.format.skip_unanswered


def test_preset_gives_models_and_training(tmp_path):
    path = written(tmp_path / "a.csv", notes(120))
    config = propose(path, "fedcollm_plus").config
    assert config.server == load_config("fedcollm_plus").server
    assert config.task.path == path


def test_recordings_get_the_preset_of_their_kind(tmp_path):
    rows = [{"file": f"{i}.wav", "said": f"words number {i}", "hospital": "ab"[i % 2]} for i in range(8)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"0\.wav"):  # it is read as recordings
        propose(path)


@pytest.mark.parametrize(
    ("rows", "wishes", "reason"),
    [
        (notes(12), Wishes(), "12 different rows are too few for 2 clients, .* Give at least 13"),
        ([[row[0], "内科", row[2]] for row in notes(30)], Wishes(), r"a\.csv: column '診療科' has one value"),
        ([[*row[:2], ""] for row in notes(12)], Wishes(), "12 different rows are too few for 2 clients"),  # of 4
        (notes(0), Wishes(), "no rows"),
        (notes(60), Wishes(answer="科"), r"a\.csv: there is no column '科'"),
    ],
)
def test_what_gives_no_configuration(tmp_path, rows, wishes: Any, reason):
    with pytest.raises(UserError, match=reason):
        propose(written(tmp_path / "a.csv", rows), wishes=wishes)


def test_few_rows_get_fewer_clients(tmp_path):
    three = [[note, WARDS[0] if i % 2 else ward, f"病院 {i % 3}"] for i, (note, ward, _) in enumerate(notes(15))]
    proposal = propose(written(tmp_path / "a.csv", three))
    task = proposal.config.task
    assert (task.clients, task.partition.kind, task.private_size) == (2, "iid", 4)
    assert task.format is not None
    assert task.format.group is None
    assert proposal.findings[-2] == (
        "15 different rows are too few for 3 clients, one for each value of 病院: here are 2 clients, with rows at "
        "random"
    )
    assert not any("which client" in finding for finding in proposal.findings)


def test_guessed_encoding_and_delimiter_are_said_and_run(tmp_path):
    rows = [[f"le cœur {i}", ("léger", "sévère")[i % 2], "nord"] for i in range(24)]
    path = tmp_path / "a.csv"
    text = "sep=;\r\nnote, longue;label;lieu\r\n" + "".join(f"{';'.join(row)}\r\n" for row in rows)
    path.write_bytes(text.encode("cp1252"))
    proposal = propose(path)
    assert proposal.findings[1] == (
        "the text seems to be in cp1252, as in 'cœur'; if that is wrong, set task.format.encoding"
    )
    form = proposal.config.task.format
    assert form is not None
    assert (form.encoding, form.answer, form.choices) == ("cp1252", "label", ["léger", "sévère"])
    path.write_bytes(("note,label\n" + "".join(f"{'w ' * 70_000}{i},{'ab'[i % 2]}\n" for i in range(24))).encode())
    assert propose(path, wishes=Wishes(prompt="{note}")).config.task.clients == 3  # of 4, for which 13 rows are too few


def test_unknown_encoding_is_refused_with_what_to_try(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"note,label\n\x81\x00\xff\xfe\x00\x9d,b\n")
    with pytest.raises(UserError, match=r"task\.format\.encoding"):
        propose(path)
