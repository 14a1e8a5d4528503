"""Adapters and merged models are taken away, and say the same elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import fedcollm
from fedcollm import ExportOptions
from fedcollm.cli.app import main
from fedcollm.config.baselines import changed
from fedcollm.errors import UserError
from fedcollm.exports import formats
from fedcollm.exports.footprint import Footprint
from fedcollm.runs.portable import read_portable
from fedcollm.runs.predictor import Predictor
from fedcollm.runs.runner import evaluate_run

FAST = {"footprint": False}


def likelihoods(model, examples):
    with torch.inference_mode():
        return torch.stack(model.modality.likelihoods(model.model, examples))


@pytest.fixture(scope="module")
def examples(finished, tmp_path_factory):
    """The test examples of the run, as a file, and their accuracy."""
    file = tmp_path_factory.mktemp("examples") / "test.jsonl"
    return file, evaluate_run(finished, "slm", file).value


def script_of(place):
    """The code of a model card."""
    found = re.search(r"```python\n(import json.*?)\n```", (place / "README.md").read_text(), re.DOTALL)
    assert found is not None
    assert len([line for line in found[1].splitlines() if line]) <= 20
    return found[1]


@pytest.mark.parametrize("options", [{"with_base": True}, {"format": "merged"}], ids=["adapter", "merged"])
def test_script_of_the_card_gives_the_score(finished, examples, tmp_path, monkeypatch, capsys, options):
    done = fedcollm.export(finished, tmp_path / "out", ExportOptions(**options, **FAST))
    assert done.check is not None
    assert (done.check.agreement, done.check.examples, done.check.passed) == (1.0, 40, True)
    assert done.check.largest_difference < 1e-4
    file, accuracy = examples
    monkeypatch.chdir(done.directory)
    monkeypatch.setattr(sys, "argv", ["script", str(file)])
    exec(compile(script_of(done.directory), "card", "exec"), {})
    assert float(capsys.readouterr().out) == pytest.approx(accuracy)
    assert 0.5 < accuracy <= 1.0  # it learned something that a script could lose
    for other in done.directory.glob("*.json"):
        assert other.name == "fedcollm.json" or str(finished.parent) not in other.read_text()


@pytest.mark.slow
def test_script_of_the_card_needs_neither_cache_nor_hub(finished, examples, tmp_path):
    fedcollm.export(finished, tmp_path / "out", ExportOptions(with_base=True, check=False))
    place = shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    settings = {"HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1", "FEDCOLLM_CACHE": str(tmp_path / "none")}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script_of(place), str(examples[0])],
        cwd=place, env=os.environ | settings, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(ended.stdout) == pytest.approx(examples[1])
    assert not (tmp_path / "none").exists()


def test_adapter_with_its_base_is_loaded_without_the_source_of_the_base(finished, tmp_path, examples, monkeypatch):
    run = shutil.copytree(finished, tmp_path / "run")
    out = fedcollm.export(run, tmp_path / "out", ExportOptions(with_base=True, check=False, **FAST)).directory
    values = json.loads((out / "fedcollm.json").read_text())
    values["model"]["source"] = "/nowhere"
    (out / "fedcollm.json").write_text(json.dumps(values))
    there, here = Predictor.load(out), Predictor.load(run / "adapters" / "slm")
    some = there.modality.read_examples(examples[0])
    assert torch.equal(likelihoods(there, some), likelihoods(here, some))


def test_merged_model_is_the_sum_of_base_and_adapter(finished, tmp_path):
    done = fedcollm.export(finished, tmp_path / "out", ExportOptions(format="merged", **FAST))
    assert done.check is not None
    assert done.check.largest_difference < 1e-4
    assert done.check.agreement == 1.0
    assert read_portable(done.directory).merged
    assert not (done.directory / "adapter_config.json").exists()
    from transformers import AutoModelForCausalLM

    model = Predictor.load(finished / "adapters" / "slm", fused=False).model
    weights = AutoModelForCausalLM.from_pretrained(done.directory, dtype="float32").state_dict()
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    b, a = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    assert torch.allclose(
        weights["model.layers.1.mlp.down_proj.weight"], layer.base_layer.weight + 16 / 8 * b @ a, atol=1e-6
    )
    assert json.loads((done.directory / "check.json").read_text())["passed"] is True
    assert f"| this export | {done.check.export.score:.4f} |" in (done.directory / "README.md").read_text()
    with pytest.raises(UserError, match="exported before"):
        fedcollm.export(done.directory, tmp_path / "again")


def test_merged_model_that_was_changed_is_refused(finished, tmp_path):
    options = ExportOptions(format="merged", quantization="bfloat16", check=False, **FAST)
    out = fedcollm.export(finished, tmp_path / "out", options).directory
    assert Predictor.load(out).model.dtype == torch.bfloat16
    values = json.loads((out / "fedcollm.json").read_text())
    values["digests"] = dict.fromkeys(values["digests"], "0" * 64)
    (out / "fedcollm.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="Export it again"):
        Predictor.load(out)


def test_export_that_loses_more_than_its_margin_exits_with_1_and_stays(finished, tmp_path, monkeypatch, capsys):
    def damaged(source, file):
        modality, model = formats.merged.load_merged(source, file)
        with torch.no_grad():
            model.model.embed_tokens.weight.zero_()
        return modality, model

    monkeypatch.setitem(formats.FORMATS, "merged", replace(formats.FORMATS["merged"], load=damaged))
    arguments = ["fedcollm", "export", str(finished), "--format", "merged", "--out", str(tmp_path / "out"), "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr("fedcollm.exports.export.measure", lambda *args: Footprint(1))
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["check"]["passed"], said["check"]["margin"]) == (False, 0.02)
    assert said["check"]["source"]["score"] - said["check"]["export"]["score"] > 0.02
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "which it exceeds" in (tmp_path / "out" / "README.md").read_text()


def test_adapter_without_a_run_is_compared_on_a_file_or_not_at_all(finished, examples, tmp_path):
    alone = shutil.copytree(finished / "adapters" / "slm", tmp_path / "final" / "adapter")
    assert fedcollm.export(alone, tmp_path / "one", ExportOptions(**FAST)).check is None
    assert "was not compared" in (tmp_path / "one" / "README.md").read_text()
    done = fedcollm.export(alone, tmp_path / "two", ExportOptions(examples=examples[0], **FAST))
    assert done.check is not None
    assert done.check.source.score == pytest.approx(examples[1])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"format": "ggguf"}, "Did you mean gguf"),
        ({"format": "merged", "with_base": True}, "part of the model"),
        ({"format": "onnx", "quantization": "q4_0"}, "fp32, int8"),
        ({"quantization": "int8"}, "Leave it out"),
        ({"role": "clients/9"}, "no trained model of role"),
    ],
)
def test_what_can_not_be_exported_is_refused(finished, tmp_path, options, word):
    with pytest.raises(UserError, match=word):
        fedcollm.export(finished, tmp_path / "out", ExportOptions(**options))
    assert not (tmp_path / "out").exists()


def test_full_directory_other_data_and_adapters_that_can_not_be_merged_are_refused(finished, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="no empty directory"):
        fedcollm.export(finished, tmp_path / "full")
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "identity.json").write_text(json.dumps([{"examples: test": "0" * 64}]))
    with pytest.raises(UserError, match="examples: test"):
        fedcollm.export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_classifier_of_images_is_merged_too(tmp_path):
    from fedcollm.config.loading import load_config

    config = load_config(
        "digits", name="d", federation={"rounds": 1}, task={"private_size": 20, "public_size": 40, "test_size": 30}
    )
    changes = {"slm.pretrain_epochs": 1, "llm.pretrain_epochs": 0, "llm.source": "vit-digits-small"}
    fedcollm.run(changed(config, changes), tmp_path / "run")
    run = shutil.move(tmp_path / "run", tmp_path / "moved")
    for options in (ExportOptions(with_base=True, **FAST), ExportOptions(format="merged", **FAST)):
        check = fedcollm.export(run, tmp_path / options.format, options).check
        assert check is not None
        assert (check.passed, check.difference_of) == (True, "logits")
        assert check.largest_difference < 0.05
    with pytest.raises(UserError, match="language models"):
        fedcollm.export(run, tmp_path / "gguf", ExportOptions(format="gguf", **FAST))
