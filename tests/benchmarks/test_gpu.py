"""The GPU's benchmarks in their tiny form on a CPU: every part runs, and every path computes the same."""

import importlib
import json

import pytest
import torch
from benchmarks.gpu import networks, paths, records, sides, variants
from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.professions import _fails_in_cudnn
from benchmarks.gpu.profile import kind_of
from benchmarks.gpu.spread import ways


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # Trainer's output directory
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


def measured(part, tmp_path, text=""):
    file = tmp_path / "results.jsonl"
    for case in importlib.import_module(f"benchmarks.gpu.{PARTS[part]}").cases(tiny=True):
        if text in case["title"]:
            records.run_case(case, file)
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("part", PARTS)
def test_cases_say_what_a_case_needs(part):
    module = importlib.import_module(f"benchmarks.gpu.{PARTS[part]}")
    for tiny in (False, True):
        cases = module.cases(tiny)
        assert cases
        for case in cases:
            assert {"part", "title", "run"} <= case.keys()
            assert callable(records.resolve(case["run"]))
    titles = [case["title"] for case in module.cases(False)]
    assert len(set(titles)) == len(titles)


def test_ways_to_spread_a_model_depend_on_the_number_of_gpus():
    assert [list(ways(gpus)) for gpus in (0, 1, 4)] == [
        ["one device", "2 processes"],
        ["one device"],
        ["one device", "device_map over 4 GPUs", "4 processes"],
    ]


def test_machine_tells_its_rate_to_later_cases(tmp_path):
    assert records.known_rate(tmp_path / "results.jsonl") is None
    (record,) = measured("machine", tmp_path)
    assert record["bf16_rate"] == max(record["bf16_rates"].values()) > 0
    assert records.known_rate(tmp_path / "results.jsonl") == record["bf16_rate"]
    assert record["versions"]["torch"] == torch.__version__


def test_attention_on_a_cpu_is_finite_under_every_mask(tmp_path):
    alone, whole = measured("nan", tmp_path)
    # 2 numbers of columns, with and without padding, 7 masks, 2 implementations; 5 masks, fused and unfused
    assert (alone["checked"], whole["checked"]) == (2 * 2 * 7 * 2, 5 * 2 * 2)
    assert alone["wrong"] == whole["wrong"] == []


@pytest.mark.slow
def test_a_side_that_fails_is_left_out(tmp_path):
    def fine(case):
        return lambda: {"seconds": 2.0, "tokens": 6, "operations": 12}

    def broken(case):
        raise ValueError("not here")

    def later(case):
        return lambda: {"seconds": 4.0} if case.setdefault("calls", []).append(1) or len(case["calls"]) < 3 else 1 / 0

    named = {"fine": fine, "broken": broken, "later": later}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sides, "resolve", named.get)
        taken = sides.Sides({"ours": ("fine", {}), "broken": ("broken", {}), "later": ("later", {})})
        taken.measure(2)
    record = taken.record(lambda ours, side: "alike", rate=24.0)
    assert record["seconds"] == {"ours": [2.0, 2.0], "broken": [], "later": [4.0]}
    assert record["ratios"] == {}  # one repetition of two says nothing beside ours
    assert (record["share"]["ours"], record["tokens_per_second"]["ours"]) == (0.25, 3.0)
    assert set(record["failed_sides"]) == {"broken", "later"}
    assert any("broken: failed" in line for line in records.shown(record))


def test_a_case_that_fails_leaves_a_record(tmp_path):
    with pytest.raises(SystemExit):
        records.run_case({"part": "x", "title": "y", "run": "benchmarks.gpu.machine:no_such"}, tmp_path / "r.jsonl")
    (record,) = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    assert "no_such" in record["failed"]


@pytest.mark.slow
@pytest.mark.slow
def test_flat_sequences_end_where_their_answers_are_predicted():
    config = variants.configuration(networks.with_models(variants.cases(True)[0]))
    task = variants.task_of(config)
    examples = variants.drawn_for(networks.with_models(variants.cases(True)[0])).private["0"][:3]
    forms = paths.Forms(task, examples)
    tokens, positions = forms.flat_inputs
    assert tokens.shape == positions.shape == (1, forms.tokens)
    assert forms.limits.tolist()[-1] == forms.tokens
    # the last row of each sequence predicts its answer's last token, which is no input
    ends = [task.encode(e.prompt, e.choices[e.answer])[1][-1] for e in examples]
    last_rows = [i for i, row in enumerate(forms.flat_rows.tolist()) if row + 1 in forms.limits.tolist()]
    assert [forms.targets[i].item() for i in last_rows] == ends


def test_profile_by_kind_of_kernel(tmp_path):
    found = measured("profile", tmp_path, "evaluate")
    assert [record["label"] for record in found] == ["evaluate"]
    assert found[0]["milliseconds"]["wall"] > 0
    assert kind_of("void cudnn_generated_fort_native_sdpa_bprop") == "attention"
    assert kind_of("multi_tensor_apply_kernel<FusedAdam>") == "optimizer"


def test_a_round_is_noted_step_by_step(tmp_path):
    noted, counted = measured("professions", tmp_path)
    assert noted["finite"]
    assert noted["failure"] is None
    for step in noted["steps"]:
        rows, longest, shortest = step["batch"]
        assert 0 < shortest <= longest
        assert rows > 0
    assert counted["batches"] == 3  # two clients and the public part, 4 examples each


def test_columns_that_cudnn_fails_on():
    padded = torch.ones(2, 192, dtype=torch.int64)
    padded[0, 0] = 0
    assert _fails_in_cudnn(padded)
    assert not _fails_in_cudnn(torch.ones(2, 192))
    assert not _fails_in_cudnn(padded[:, :191])
    assert not _fails_in_cudnn(torch.cat([padded, padded[:, :64]], 1))
