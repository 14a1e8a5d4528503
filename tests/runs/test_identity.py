import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import fedcollm
from fedcollm.config.baselines import changed
from fedcollm.errors import UserError
from fedcollm.runs import directory as directories
from fedcollm.runs.estimate import check as estimated
from fedcollm.runs.identity import digest_of
from fedcollm.runs.runner import evaluate_run


@pytest.fixture
def finished(tiny_config, tmp_path):
    """A run of one round on data and models of its own, and its configuration."""
    data = tmp_path / "words.jsonl"
    shutil.copy(tiny_config.task.path, data)
    for role in ("slm", "llm"):
        shutil.copytree(getattr(tiny_config, role).source, tmp_path / role)
    models = {f"{role}.source": str(tmp_path / role) for role in ("slm", "llm")}
    config = changed(tiny_config, {"task.path": data, **models, "federation.rounds": 1})
    config = changed(config, {"slm.dtype": "float32", "llm.dtype": "float32"})
    fedcollm.run(config, tmp_path / "run")
    return config, tmp_path / "run"


def flip(file: Path) -> None:
    """Swap the answers of the first two rows, which have different ones."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    other = next(row for row in rows if row["kind"] != rows[0]["kind"])
    rows[0]["kind"], other["kind"] = other["kind"], rows[0]["kind"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_run_is_neither_resumed_nor_scored_on_other_data(finished):
    config, out = finished
    file = config.task.path
    flip(file)
    longer = changed(config, {"federation.rounds": 2})
    for attempt in (lambda: fedcollm.run(longer, out, resume=True), lambda: evaluate_run(out, "slm")):
        with pytest.raises(UserError, match=f"file {file}.*task.path.*--accept-changed-data"):
            attempt()
    before = json.loads((out / "identity.json").read_text())
    records = fedcollm.run(longer, out, resume=True, accept_changed_data=True).records
    assert [record.round for record in records] == [0, 1, 2]
    assert len(before) == 1
    known = json.loads((out / "identity.json").read_text())
    assert known[:1] == before
    assert known[1][f"file {file}"] != before[0][f"file {file}"]
    assert known[1]["weights of llm in float32"] == before[0]["weights of llm in float32"]
    evaluate_run(out, "slm")  # the accepted data is that of the run now


def test_run_is_neither_resumed_nor_scored_on_other_base_weights(finished):
    config, out = finished
    network = AutoModelForCausalLM.from_pretrained(config.slm.source)
    torch.nn.init.normal_(next(network.parameters()))
    network.save_pretrained(config.slm.source)
    for attempt in (lambda: fedcollm.run(config, out, resume=True), lambda: evaluate_run(out, "slm")):
        with pytest.raises(UserError, match=r"weights of slm in float32 \(slm.source: "):
            attempt()
    assert evaluate_run(out, "slm", accept_changed_data=True).count


def test_same_run_adds_nothing_to_its_record(finished):
    config, out = finished
    before = (out / "identity.json").read_bytes()
    fedcollm.run(changed(config, {"federation.rounds": 2}), out, resume=True)
    assert (out / "identity.json").read_bytes() == before


def test_order_counts_in_a_digest():
    one, other = ({"id": name} for name in "ab")
    assert digest_of([one, other]) != digest_of([other, one])
    assert digest_of([one]) == digest_of([{"id": "a"}])


def test_run_is_not_scored_with_another_configuration(finished):
    config, out = finished
    rewrite(Path(config.slm.source) / "config.json", {'"silu"': '"relu"'})
    with pytest.raises(UserError, match=r"configuration of slm \(slm.source"):
        evaluate_run(out, "slm")


def test_run_is_not_scored_with_another_tokenizer(finished):
    config, out = finished
    for model in (config.slm, config.llm):
        rewrite(Path(model.source) / "tokenizer.json", {'"colour": 12': '"colour": 13', '"animal": 13': '"animal": 12'})
    with pytest.raises(UserError, match=r"preprocessing of slm, preprocessing of llm \(slm.source.*llm.source"):
        evaluate_run(out, "slm")


def rewrite(file: Path, changes: dict[str, str]) -> None:
    """Change the text of a file, which must have all that is to be changed."""
    text = file.read_text(encoding="utf-8")
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("content", [b"{", b"", b"null", b"[]", b"[{}]", b"5", b'{"a": 1}', b"\xff", b"[" * 5000])
def test_damaged_record_is_named(finished, content):
    _, out = finished
    (out / "identity.json").write_bytes(content)
    with pytest.raises(UserError, match=r"identity\.json is damaged"):
        evaluate_run(out, "slm")


def test_run_without_a_record_is_let_through(finished):
    _, out = finished
    (out / "identity.json").unlink()
    assert evaluate_run(out, "slm").count


def test_adapter_that_a_run_starts_from_is_kept_and_is_part_of_what_it_is_made_of(tiny_config, tmp_path):
    shorter = changed(tiny_config, {"federation.rounds": 1, "evaluation.clients": "never"})
    first = fedcollm.run(shorter, tmp_path / "first").adapters["slm"]
    second = changed(shorter, {"slm.adapter.start": str(first)})
    begun = fedcollm.run(second, tmp_path / "second")
    before, after = (directories.read_records(tmp_path / name) for name in ("first", "second"))
    assert after[0].scores["slm"] == before[-1].scores["slm"] != before[0].scores["slm"]
    (recorded,) = json.loads((begun.directory / directories.IDENTITY).read_text())
    assert len(recorded["start of slm"]) == 64
    assert estimated(second).notes == ()
    settings = first / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "their/base"}))
    (note,) = estimated(second).notes
    assert note.startswith(f"slm.adapter.start: {first} says that it was trained on their/base; here, its base is")
    shutil.rmtree(first)  # the run has its own copy
    resumed = fedcollm.run(changed(second, {"federation.rounds": 2}), begun.directory, resume=True)
    assert [record.round for record in resumed.records] == [0, 1, 2]
