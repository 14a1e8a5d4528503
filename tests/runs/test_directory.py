"""What a run leaves on disk, and what stays whole when writing fails."""

import errno

import pytest
import torch
import yaml

from fedcollm.config import RunConfig
from fedcollm.config.loading import load_config
from fedcollm.errors import UserError
from fedcollm.messages import RoundRecord
from fedcollm.runs import directory as run_directory
from fedcollm.runs.directory import (
    load_round,
    read_config,
    read_json,
    read_records,
    save_round,
    start,
    write_json,
)


def record(index: int) -> RoundRecord:
    return RoundRecord(index, scores={"slm": 0.1 * index}, participants=("0", "1"), seconds={"clients": 1 / 3})


def adapters(value: float) -> dict:
    return {
        "slm": {"base.layers.0.lora_A.weight": torch.full((2, 3), value), "b": torch.tensor([1 / 3, -0.0, value])},
        "llm": {"b": torch.full((4,), value, dtype=torch.bfloat16)},
    }


def same_bits(one: dict, two: dict) -> bool:
    def bits(tensor):
        return tensor.dtype, tensor.shape, tensor.contiguous().view(torch.uint8).tolist()

    return {r: {n: bits(t) for n, t in a.items()} for r, a in one.items()} == {
        r: {n: bits(t) for n, t in a.items()} for r, a in two.items()
    }


def fail_with_a_full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


# --- rounds ---


def test_round_survives_bit_for_bit(tmp_path):
    save_round(tmp_path, record(3), adapters(0.1))
    loaded_record, loaded = load_round(tmp_path)
    assert loaded_record == record(3)
    assert same_bits(loaded, adapters(0.1))


def test_directory_without_a_round_has_none(tmp_path):
    assert load_round(tmp_path) is None
    assert read_records(tmp_path) == []


def test_last_round_is_the_one_that_is_loaded(tmp_path):
    for index in range(3):
        save_round(tmp_path, record(index), adapters(float(index)))
    loaded_record, loaded = load_round(tmp_path)
    assert loaded_record.round == 2
    assert same_bits(loaded, adapters(2.0))
    assert read_records(tmp_path) == [record(0), record(1), record(2)]


def test_round_without_an_llm_survives(tmp_path):
    only_slm = {"slm": adapters(1.0)["slm"]}
    save_round(tmp_path, record(0), only_slm)
    assert same_bits(load_round(tmp_path)[1], only_slm)


def test_round_that_is_run_again_replaces_its_line_and_all_later_ones(tmp_path):
    for index in range(4):
        save_round(tmp_path, record(index), adapters(0.0))
    again = RoundRecord(2, scores={"slm": 0.9})
    save_round(tmp_path, again, adapters(0.0))
    assert read_records(tmp_path) == [record(0), record(1), again]


def test_records_are_one_json_line_each(tmp_path):
    save_round(tmp_path, record(0), adapters(0.0))
    save_round(tmp_path, record(1), adapters(0.0))
    text = (tmp_path / "rounds.jsonl").read_text()
    assert text == f"{record(0).to_json()}\n{record(1).to_json()}\n"


def test_saving_leaves_no_temporary_files(tmp_path):
    save_round(tmp_path, record(0), adapters(0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.safetensors", "rounds.jsonl"]


def test_checkpoint_is_replaced_and_never_rewritten(tmp_path):
    save_round(tmp_path, record(0), adapters(0.5))
    checkpoint = tmp_path / "checkpoint.safetensors"
    before = checkpoint.read_bytes()
    with checkpoint.open("rb") as file:
        save_round(tmp_path, record(1), adapters(1.0))
        assert file.read() == before
    assert checkpoint.read_bytes() != before


def test_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    save_round(tmp_path, record(0), adapters(0.5))
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", fail_with_a_full_disk)
        with pytest.raises(UserError, match=r"can't be written: .*No space left on device.*--out"):
            save_round(tmp_path, record(1), adapters(1.0))
    loaded_record, loaded = load_round(tmp_path)
    assert loaded_record == record(0)
    assert same_bits(loaded, adapters(0.5))
    assert read_records(tmp_path) == [record(0)]


def test_checkpoint_cut_off_while_writing_leaves_the_last_one_whole(tmp_path, monkeypatch):
    def write_half(tensors, path, metadata):
        path.write_bytes(b"half")
        fail_with_a_full_disk()

    save_round(tmp_path, record(0), adapters(0.5))
    monkeypatch.setattr("safetensors.torch.save_file", write_half)
    with pytest.raises(UserError, match="No space left"):
        save_round(tmp_path, record(1), adapters(1.0))
    assert same_bits(load_round(tmp_path)[1], adapters(0.5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.safetensors", "rounds.jsonl"]


def test_leftover_of_a_killed_process_goes_with_the_next_round(tmp_path):
    (tmp_path / ".checkpoint.safetensors-0123456789abcdef").write_bytes(b"half")
    save_round(tmp_path, record(0), adapters(0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.safetensors", "rounds.jsonl"]


def test_round_killed_before_its_line_gets_it_when_it_is_loaded(tmp_path, monkeypatch):
    save_round(tmp_path, record(0), adapters(0.0))
    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "_append_record", fail_with_a_full_disk)
        with pytest.raises(UserError, match="No space left"):
            save_round(tmp_path, record(1), adapters(1.0))
    assert read_records(tmp_path) == [record(0)]
    assert load_round(tmp_path)[0] == record(1)
    assert read_records(tmp_path) == [record(0), record(1)]


def test_broken_checkpoint_is_the_users_error(tmp_path):
    save_round(tmp_path, record(0), adapters(0.0))
    (tmp_path / "checkpoint.safetensors").write_bytes(b"cut off by a copy")
    with pytest.raises(UserError, match="checkpoint"):
        load_round(tmp_path)


# --- JSON ---


def test_json_survives(tmp_path):
    write_json(tmp_path, "values.json", {"clients": {"ä": [1, 2.5, None]}})
    assert read_json(tmp_path, "values.json") == {"clients": {"ä": [1, 2.5, None]}}


def test_missing_json_is_none(tmp_path):
    assert read_json(tmp_path, "data.json") is None


def test_json_that_cannot_be_written_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="missing can't be written"):
        write_json(tmp_path / "missing", "data.json", {})


# --- beginning a run ---


@pytest.mark.parametrize("preset", ["icd10", "gpt2", "digits"])
def test_configuration_survives(tmp_path, preset):
    config = load_config(preset, seed=3, task={"path": "/some/where"})
    start(tmp_path, config)
    assert read_config(tmp_path) == config


def test_second_run_in_one_directory_is_refused(tmp_path):
    start(tmp_path, RunConfig())
    with pytest.raises(UserError, match=r"already holds a run.*fedcollm run --resume --out"):
        start(tmp_path, RunConfig(seed=1))
    assert read_config(tmp_path).seed == 0


def test_directory_without_a_run_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"no run: config\.yaml"):
        read_config(tmp_path)


def test_configuration_that_no_longer_fits_is_the_users_error(tmp_path):
    start(tmp_path, RunConfig())
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values | {"sede": 3}))
    with pytest.raises(UserError, match="sede"):
        read_config(tmp_path)


#: The configuration of a run as schema version 1 wrote it, shortened: no `schema_version`, and keys by their old names.
OLD_CONFIG = """
name: old
seed: 0
slm: {layers: 10, warm_up: 0}
server: {transplant: 0.0, distillation: {selective: false, ramp: 0}}
federation:
  rounds: 3
  minimum_clients: 1
  secure_aggregation: true
  masking: {threshold: null, value_range: 16.0, max_weight: 4096, rehearse: false}
  step: {kind: none, rate: 1.0}
"""


@pytest.mark.parametrize("version", ["", "schema_version: 1\n", "schema_version: 3\n"])
def test_run_of_another_version_is_the_users_error(tmp_path, version):
    (tmp_path / "config.yaml").write_text(version + OLD_CONFIG)
    with pytest.raises(UserError, match=r"config\.yaml .*schema_version.* another directory"):
        read_config(tmp_path)


def test_run_directory_without_a_version_is_an_older_one_even_with_valid_keys(tmp_path):
    (tmp_path / "config.yaml").write_text("name: old\n")
    with pytest.raises(UserError, match="schema_version is 1"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["", "- 1\n", "name: [\n"])
def test_configuration_that_is_no_mapping_is_the_users_error(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        read_config(tmp_path)
