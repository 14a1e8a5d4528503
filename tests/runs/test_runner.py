import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.conftest import PATIENCE_SECONDS, wait_for
from transformers import AutoModelForCausalLM

import fedcollm
from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.errors import NonFiniteError, UserError
from fedcollm.federation.server import Server
from fedcollm.runs import directory as run_directory
from fedcollm.runs.runner import evaluate_run, rounds


def with_rounds(config: RunConfig, count: int) -> RunConfig:
    return config.model_copy(update={"federation": config.federation.model_copy(update={"rounds": count})})


def untimed(directory: Path) -> list[dict]:
    """Records without what differs between two runs of the same thing: seconds and memory."""
    lines = (directory / "rounds.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "peak_memory_bytes")} for line in lines]


def assert_equal_runs(one: Path, two: Path) -> None:
    first, second = load_file(one / "checkpoint.safetensors"), load_file(two / "checkpoint.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert untimed(one) == untimed(two)


def test_run_writes_a_whole_run_directory(tiny_config, tmp_path):
    result = fedcollm.run(tiny_config, tmp_path / "run")
    assert [record.round for record in result.records] == [0, 1, 2]
    assert result.records[0].participants == ()
    assert result.records[2].participants == ("0", "1")
    assert set(result.records[2].scores) == {"slm", "llm", "clients"}
    assert result.adapters.keys() == {"slm", "llm"}
    frame = result.to_pandas()
    assert list(frame["scores.slm"]) == [record.scores["slm"] for record in result.records]
    data = run_directory.read_json(tmp_path / "run", run_directory.DATA)
    assert sum(data["clients"]["0"].values()) == 40
    confusion = run_directory.read_json(tmp_path / "run", run_directory.CONFUSION)
    assert sum(count for _, _, count in confusion["llm"]) == 48
    outcomes = run_directory.read_json(tmp_path / "run", run_directory.OUTCOMES)
    assert {role: sum(values.values()) / len(values) for role, values in outcomes.items()} == {
        role: result.records[2].scores[role] for role in ("slm", "llm")
    }
    assert {len(values) for values in outcomes.values()} == {48}


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX ones")
def test_only_the_owner_reads_a_run_whatever_the_umask(personal, tmp_path):
    before, config = os.umask(0), changed(personal, {"log_steps": True, "federation.rounds": 1})
    try:
        fedcollm.run(config, tmp_path / "runs" / "one")
    finally:
        os.umask(before)
    places = list((tmp_path / "runs").rglob("*"))
    assert {"steps.jsonl", "checkpoint.safetensors", "adapter_model.safetensors", "personal.json"} <= {
        place.name for place in places
    }
    assert not [place for place in places if place.stat().st_mode & 0o077]


def test_outcomes_lost_after_the_last_round_are_found_again(tiny_config, tmp_path):
    fedcollm.run(with_rounds(tiny_config, 1), tmp_path / "run")
    outcomes = tmp_path / "run" / run_directory.OUTCOMES
    before = outcomes.read_text()
    outcomes.unlink()
    fedcollm.run(with_rounds(tiny_config, 1), tmp_path / "run", resume=True)
    assert outcomes.read_text() == before


def test_both_roles_learn_the_toy_task(tiny_config, tmp_path):
    records = fedcollm.run(with_rounds(tiny_config, 8), tmp_path / "run").records
    assert records[-1].scores["slm"] > 0.8  # chance is 0.5
    assert records[-1].scores["llm"] > 0.8


def test_same_seed_gives_the_same_bits(tiny_config, tmp_path):
    fedcollm.run(tiny_config, tmp_path / "one")
    fedcollm.run(tiny_config, tmp_path / "two")
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


def test_resume_gives_bit_for_bit_what_an_uninterrupted_run_gives(tiny_config, tmp_path):
    config = changed(with_rounds(tiny_config, 3), {"client.augmentation": {"kinds": {"word_dropout": 0.9}}})
    fedcollm.run(config, tmp_path / "whole")
    interrupted = rounds(config, tmp_path / "parts")
    assert next(interrupted).round == 0
    assert next(interrupted).round == 1
    interrupted.close()
    assert [record.round for record in rounds(None, tmp_path / "parts", resume=True)] == [0, 1, 2, 3]
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    notes = json.loads((tmp_path / "parts" / "data.json").read_text())["notes"]
    assert [note for note in notes if "augmentation" in note and note.endswith("word_dropout (0.9)")]


STEPS = {
    "fedavgm": (
        {"federation.server_optimizer.kind": "fedavgm", "federation.server_optimizer.learning_rate": 0.5},
        {"momentum"},
    ),
    "fedadam": (
        {"federation.server_optimizer.kind": "fedadam", "federation.server_optimizer.learning_rate": 0.01},
        {"momentum", "second_moment"},
    ),
    "layer_transfer": ({"server.layer_transfer": 1.0, "federation.server_optimizer.kind": "fedavgm"}, {"momentum"}),
}


@pytest.mark.parametrize("name", STEPS)
def test_memory_of_the_servers_step_is_resumed_bit_for_bit(tiny_config, tmp_path, monkeypatch, name):
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))
    values, memory = STEPS[name]
    if name == "layer_transfer":  # an SLM of the LLM's first and last layer
        values = values | {"slm.source": tiny_config.llm.source, "slm.layers": 2}
    config = changed(with_rounds(tiny_config, 3), values)
    fedcollm.run(config, tmp_path / "whole")
    for _ in range(2):  # stopped after round 1, and again after round 2
        resume = (tmp_path / "parts").exists()
        interrupted = rounds(config, tmp_path / "parts", resume=resume)
        assert [next(interrupted).round for _ in range(3 if resume else 2)] == [0, 1, 2][: 3 if resume else 2]
        interrupted.close()
    result = fedcollm.run(config, tmp_path / "parts", resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    saved = load_file(tmp_path / "parts" / "checkpoint.safetensors")
    assert {key.split("/")[0] for key in saved} == {"slm", "llm"} | memory
    assert result.adapters.keys() == {"slm", "llm"}


def test_memory_of_the_servers_step_is_no_role(tiny_config, tmp_path):
    fedcollm.run(changed(with_rounds(tiny_config, 1), STEPS["fedavgm"][0]), tmp_path / "run")
    with pytest.raises(UserError, match=r"has no momentum adapter\. Roles there: slm, llm\."):
        evaluate_run(tmp_path / "run", "momentum")


def test_run_with_frozen_a_sends_b_alone_and_leaves_files_that_peft_reads(tiny_config, tmp_path, model_directories):
    config = changed(tiny_config, {"slm.adapter.freeze_a": True})
    result = fedcollm.run(config, tmp_path / "run")
    # B of a layer, rank 8: q, k, v, o and down 8 * 16 = 128 each, gate and up 256 each; 2 layers, 4 bytes each
    assert [record.bytes_up for record in result.records] == [0, 9216, 9216]
    saved = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert {key.split(".")[-2] for key in saved if key.startswith("slm/")} == {"lora_B"}
    assert evaluate_run(tmp_path / "run", "slm").value == result.records[-1].scores["slm"]
    base = AutoModelForCausalLM.from_pretrained(model_directories["slm"])
    model = peft.PeftModel.from_pretrained(base, str(result.adapters["slm"]))
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    assert all(torch.equal(state[key.removeprefix("slm/")], saved[key]) for key in saved if key.startswith("slm/"))


def test_resume_after_kill_in_the_middle_of_a_round(tiny_config, tmp_path):
    config = with_rounds(tiny_config, 3)
    fedcollm.run(config, tmp_path / "whole")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    # The process stops itself with SIGKILL in its 4th training: round 2, after its first client.
    script = f"""
import os, signal
from fedcollm.federation import client
fit, calls = client.fit, []
def dying(*args, **kwargs):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return fit(*args, **kwargs)
client.fit = dying
import fedcollm
fedcollm.run(fedcollm.load_config({str(file)!r}), {str(tmp_path / "killed")!r})
"""
    died = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    )
    assert died.returncode == -signal.SIGKILL
    assert untimed(tmp_path / "killed")[-1]["round"] == 1
    fedcollm.run(config, tmp_path / "killed", resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")


def test_interrupt_says_how_to_go_on_and_keeps_the_rounds(tiny_config, tmp_path, interruptible_children):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(with_rounds(tiny_config, 1_000_000).model_dump(mode="json")))
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fedcollm", "run", str(file), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: (out / "rounds.jsonl").exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, errors
    assert f"fedcollm run --resume --out {out}" in errors
    assert run_directory.load_round(out) is not None


def test_resume_may_add_rounds_but_nothing_else(tiny_config, tmp_path):
    fedcollm.run(tiny_config, tmp_path / "run")
    longer = fedcollm.run(with_rounds(tiny_config, 3), tmp_path / "run", resume=True)
    assert longer.records[-1].round == 3
    with pytest.raises(UserError, match=r"different configuration \(seed: 7, was 0\)"):
        fedcollm.run(tiny_config.model_copy(update={"seed": 7}), tmp_path / "run", resume=True)


def test_second_run_into_the_same_directory_is_refused(tiny_config, tmp_path):
    fedcollm.run(tiny_config, tmp_path / "run")
    before = (tmp_path / "run" / "rounds.jsonl").read_text()
    with pytest.raises(UserError, match="already holds a run"):
        fedcollm.run(tiny_config, tmp_path / "run")
    assert (tmp_path / "run" / "rounds.jsonl").read_text() == before


@pytest.mark.parametrize("threshold", [2, 5])
def test_threshold_that_no_client_would_accept_is_refused_and_leaves_nothing(tiny_config, tmp_path, threshold):
    secure = tiny_config.federation.secure_aggregation.model_copy(update={"enabled": True, "threshold": threshold})
    federation = tiny_config.federation.model_copy(update={"secure_aggregation": secure})
    task = tiny_config.task.model_copy(update={"clients": 4, "private_size": 20})
    config = tiny_config.model_copy(update={"federation": federation, "task": task})
    with pytest.raises(UserError, match=rf"federation\.secure_aggregation: threshold {threshold} of 4 clients"):
        fedcollm.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_without_clients_needs_no_masks(tiny_config, tmp_path):
    secure = tiny_config.federation.secure_aggregation.model_copy(update={"enabled": True})
    federation = tiny_config.federation.model_copy(update={"secure_aggregation": secure, "participants": []})
    records = fedcollm.run(tiny_config.model_copy(update={"federation": federation}), tmp_path).records
    assert [record.participants for record in records] == [(), (), ()]


def test_clients_are_scored_in_the_last_round_only_if_so_configured(tiny_config, tmp_path):
    evaluation = tiny_config.evaluation.model_copy(update={"clients": "last"})
    every = fedcollm.run(tiny_config, tmp_path / "every").records
    last = fedcollm.run(tiny_config.model_copy(update={"evaluation": evaluation}), tmp_path / "last").records
    assert ["clients" in record.scores for record in every] == [False, True, True]
    assert ["clients" in record.scores for record in last] == [False, False, True]
    assert last[2].scores == every[2].scores
    assert last[1].scores["slm"] == every[1].scores["slm"]


def test_clients_that_are_never_scored_leave_the_rest_as_it_is(tiny_config, tmp_path):
    evaluation = tiny_config.evaluation.model_copy(update={"clients": "never"})
    every = fedcollm.run(tiny_config, tmp_path / "every").records
    never = fedcollm.run(tiny_config.model_copy(update={"evaluation": evaluation}), tmp_path / "never").records
    assert ["clients" in record.scores for record in never] == [False, False, False]
    assert [record.scores for record in never] == [
        {role: score for role, score in record.scores.items() if role != "clients"} for record in every
    ]


def test_adapters_on_disk_reproduce_the_scores_with_peft_alone(tiny_config, tmp_path, model_directories):
    result = fedcollm.run(tiny_config, tmp_path / "run")
    for role in ("slm", "llm"):
        assert evaluate_run(tmp_path / "run", role).value == result.records[-1].scores[role]
        base = AutoModelForCausalLM.from_pretrained(model_directories[role])
        model = peft.PeftModel.from_pretrained(base, str(result.adapters[role]))
        state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        saved = load_file(tmp_path / "run" / "checkpoint.safetensors")
        assert all(torch.equal(state[name], saved[f"{role}/{name}"]) for name in state)


# --- adapters that clients keep ---


@pytest.fixture
def personal(tiny_config) -> RunConfig:
    return changed(tiny_config, {"client.personal": True})


def test_clients_own_adapters_are_peft_files_and_scored_once(personal, tiny_config, tmp_path, model_directories):
    result = fedcollm.run(personal, tmp_path / "run")
    plain = fedcollm.run(tiny_config, tmp_path / "plain")
    assert result.adapters.keys() == {"slm", "llm", "clients/0", "clients/1"}
    assert ["personal" in record.scores for record in result.records] == [False, False, True]
    told = run_directory.read_json(tmp_path / "run", run_directory.PERSONAL)
    assert told["round"] == 2
    assert result.records[2].scores["personal"] == pytest.approx(sum(told["scores"].values()) / 2)
    assert {k: v for k, v in result.records[2].scores.items() if k != "personal"} == plain.records[2].scores
    base = AutoModelForCausalLM.from_pretrained(model_directories["slm"])
    peft.PeftModel.from_pretrained(base, str(result.adapters["clients/1"]))
    slm, own = (load_file(result.adapters[role] / "adapter_model.safetensors") for role in ("slm", "clients/1"))
    assert slm.keys() == own.keys()
    assert not any(torch.equal(slm[name], own[name]) for name in slm)


@pytest.mark.parametrize("place", ["personalize", "save_round"])
def test_run_that_ends_before_clients_keep_theirs_does_it_when_resumed(personal, tmp_path, monkeypatch, place):
    fedcollm.run(personal, tmp_path / "whole")

    def dying(*args, **kwargs):
        raise KeyboardInterrupt

    if place == "personalize":
        monkeypatch.setattr(Server, "personalize", dying)
    else:
        monkeypatch.setattr(
            Server, "personalize", lambda *args: monkeypatch.setattr(run_directory, place, dying) or (1, 2)
        )
    with pytest.raises(KeyboardInterrupt):
        fedcollm.run(personal, tmp_path / "parts")
    monkeypatch.undo()
    assert "personal" not in untimed(tmp_path / "parts")[-1]["scores"]
    fedcollm.run(personal, tmp_path / "parts", resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    whole, parts = (
        load_file(tmp_path / run / "adapters/clients/0/adapter_model.safetensors") for run in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_finished_run_is_not_personalised_again_but_one_with_more_rounds_is(personal, tmp_path, monkeypatch):
    fedcollm.run(personal, tmp_path / "run")
    calls, personalize = [], Server.personalize
    monkeypatch.setattr(
        Server, "personalize", lambda self, record: calls.append(record.round) or personalize(self, record)
    )
    fedcollm.run(personal, tmp_path / "run", resume=True)
    assert calls == []
    records = fedcollm.run(with_rounds(personal, 3), tmp_path / "run", resume=True).records
    assert calls == [3]
    assert ["personal" in record.scores for record in records] == [False, False, True, True]


def test_diverging_loss_stops_the_round_and_keeps_the_last_good_state(tiny_config, tmp_path, monkeypatch):
    from fedcollm.federation import client

    config, fit = with_rounds(tiny_config, 3), client.fit
    generator = rounds(config, tmp_path / "run")
    next(generator), next(generator)
    good = load_file(tmp_path / "run" / "checkpoint.safetensors")

    def poisoned(task, model, *args, **kwargs):
        next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))
        return fit(task, model, *args, **kwargs)

    monkeypatch.setattr(client, "fit", poisoned)
    with pytest.raises(NonFiniteError, match="client 0, round 2: the training loss became nan"):
        next(generator)
    kept = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert all(torch.equal(good[name], kept[name]) for name in good)
    assert untimed(tmp_path / "run")[-1]["round"] == 1


def test_full_disk_leaves_the_last_checkpoint_whole(tiny_config, tmp_path, monkeypatch):
    generator = rounds(tiny_config, tmp_path / "run")
    next(generator), next(generator)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        next(generator)
    monkeypatch.undo()
    state = run_directory.load_round(tmp_path / "run")
    assert state is not None
    assert state[0].round == 1


def test_failed_start_leaves_nothing_behind(tiny_config, tmp_path):
    broken = tiny_config.model_copy(update={"task": tiny_config.task.model_copy(update={"private_size": 10_000})})
    with pytest.raises(UserError):
        fedcollm.run(broken, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_safetensors_are_written(tiny_config, tmp_path):
    fedcollm.run(tiny_config, tmp_path / "run")
    suffixes = {file.suffix for file in (tmp_path / "run").rglob("*") if file.is_file() and file.name != ".lock"}
    assert suffixes == {".yaml", ".json", ".jsonl", ".safetensors", ".md"}


def test_own_modality_and_data_can_be_passed_in(tiny_config, tmp_path, tokenizer):
    from fedcollm.data.pool import Pool
    from fedcollm.modalities.text.task import TextExample, TextTask

    words = [("red", 0), ("green", 0), ("cat", 1), ("dog", 1)]
    examples = [
        TextExample(f"{i}", f"{'the ' * (i % 24)}{word} is a", ("colour", "animal"), answer, ("colour", "animal"))
        for i in range(48)
        for word, answer in [words[(i // 24 + i) % 4]]
    ]
    sizes = {"clients": 2, "private_size": 8, "public_size": 8, "test_size": 8}
    config = tiny_config.model_copy(update={"task": tiny_config.task.model_copy(update=sizes)})
    modality = TextTask("mine", tokenizer, vocabulary_size=16, context_length=32)
    result = fedcollm.run(config, tmp_path / "run", modality=modality, pool=Pool(examples))
    assert result.records[-1].round == 2


def test_pair_with_two_tokenizers_tunes_both_roles_and_resumes_bit_for_bit(pair_config, tmp_path):
    interrupted = rounds(pair_config, tmp_path / "parts")
    assert next(interrupted).round == 0
    before = run_directory.load_round(tmp_path / "parts")[1]
    assert next(interrupted).round == 1
    interrupted.close()
    records = list(rounds(None, tmp_path / "parts", resume=True))
    assert records[-1].losses["kl"] > 0
    after = run_directory.load_round(tmp_path / "parts")[1]
    for role in ("slm", "llm"):
        assert not any(torch.equal(before[role][name], after[role][name]) for name in before[role])
        assert evaluate_run(tmp_path / "parts", role).value == records[-1].scores[role]
    fedcollm.run(pair_config, tmp_path / "whole")
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_both_roles_of_a_pair_with_two_tokenizers_learn_the_toy_task(pair_config, tmp_path):
    records = fedcollm.run(with_rounds(pair_config, 8), tmp_path / "run").records
    assert records[-1].scores["slm"] > 0.8  # chance is 0.5
    assert records[-1].scores["llm"] > 0.8
    notes = run_directory.read_json(tmp_path / "run", run_directory.DATA)["notes"]
    assert not any("oldest tokens" in note for note in notes)


def test_extended_run_keeps_its_new_number_of_rounds(tiny_config, tmp_path):
    fedcollm.run(with_rounds(tiny_config, 1), tmp_path / "run")
    extended = rounds(with_rounds(tiny_config, 3), tmp_path / "run", resume=True)
    assert [next(extended).round for _ in range(3)] == [0, 1, 2]
    extended.close()
    assert [record.round for record in rounds(None, tmp_path / "run", resume=True)] == [0, 1, 2, 3]


def test_new_run_does_not_adopt_an_old_checkpoint(tiny_config, tmp_path):
    fedcollm.run(with_rounds(tiny_config, 1), tmp_path / "run")
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(UserError, match="already holds a run"):
        fedcollm.run(changed(tiny_config, {"seed": 5}), tmp_path / "run")


def test_checkpoint_of_other_models_is_refused(tiny_config, tmp_path):
    fedcollm.run(with_rounds(tiny_config, 1), tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("rank: 8", "rank: 4"))
    with pytest.raises(UserError, match=r"checkpoint\.safetensors does not fit"):
        evaluate_run(tmp_path / "run", "slm")


@pytest.mark.parametrize("given", [{"pool": []}, {"modality": "text"}, {"modality": dict}])
def test_inputs_of_another_type_are_refused(tiny_config, tmp_path, given):
    with pytest.raises(UserError, match=f"{next(iter(given))}: .* is no "):
        fedcollm.run(tiny_config, tmp_path / "run", **given)


# --- few bits ---


@pytest.mark.parametrize(("upload", "most"), [("int8", 1 / 4), ("int4", 1 / 9)])
def test_quantized_uploads_are_smaller_and_train_as_well(tiny_config, tmp_path, upload, most):
    whole = fedcollm.run(tiny_config, tmp_path / "whole").records[-1]
    few = fedcollm.run(changed(tiny_config, {"federation.upload": upload}), tmp_path / "few").records[-1]
    scales = 4 * 2 * 2 * 7  # one for each of A and B of seven layers in each of two blocks
    assert few.bytes_up == pytest.approx(whole.bytes_up * most + scales, abs=4)
    assert few.scores["slm"] >= whole.scores["slm"] - 0.15
    again = fedcollm.run(changed(tiny_config, {"federation.upload": upload}), tmp_path / "again").records[-1]
    assert again.scores == few.scores


@pytest.mark.parametrize("bits", [16, 8])
def test_secure_sums_of_few_bits_equal_their_simulation(tiny_config, tmp_path, bits):
    changes = {"task.clients": 3, "task.private_size": 30, "federation.rounds": 1}
    fixed = {"bits": bits, "max_weight": 32, "value_range": 0.25}
    secure = {f"federation.secure_aggregation.{name}": value for name, value in (fixed | {"enabled": True}).items()}
    simulated = {f"federation.secure_aggregation.{n}": v for n, v in (fixed | {"simulate_quantization": True}).items()}
    one = fedcollm.run(changed(tiny_config, changes | secure), tmp_path / "secure")
    two = fedcollm.run(changed(tiny_config, changes | simulated), tmp_path / "simulated")
    masked, plain = (load_file(r.directory / "checkpoint.safetensors") for r in (one, two))
    assert all(torch.equal(masked[name], plain[name]) for name in masked)
    assert one.records[-1].participants == two.records[-1].participants == ("0", "1", "2")
    assert two.records[-1].bytes_up < one.records[-1].bytes_up < two.records[-1].bytes_up + 1500  # keys and shares


def test_bits_that_hold_nothing_are_refused(tiny_config, tmp_path):
    changes = {"federation.secure_aggregation.enabled": True, "federation.secure_aggregation.bits": 4}
    with pytest.raises(UserError, match="max_weight"):
        fedcollm.run(changed(tiny_config, changes | {"task.clients": 3}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
