"""The command `fedcollm shrink`: what it prints, what it refuses before any work, and that Ctrl-C loses nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.conftest import wait_for
from transformers import BertConfig, BertModel, LlamaForCausalLM, ViTConfig, ViTModel

from fedcollm.cli import app as cli
from fedcollm.config.baselines import changed
from fedcollm.models.pretrained import load_config
from fedcollm.runs import shrink, shrink_plan, shrink_scores
from fedcollm.runs.runner import evaluate_run, run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text(healing_text) -> Path:
    return healing_text


@pytest.fixture
def command(monkeypatch, capsys, text, model_directories, tmp_path):
    """Shrink the tiny LLM to two layers, with other options: (exit code, standard output, standard error)."""

    def call(*options: object, model: object = model_directories["llm"]) -> tuple[int, str, str]:
        values = (f"text={text}", "size=96", "batch_size=16", "learning_rate=0.01")
        settings = [word for value in values for word in ("--set", f"heal.{value}")]
        default = ["fedcollm", "shrink", model, "--layers", "2", "--out", tmp_path / "out", *settings]
        monkeypatch.setattr(sys, "argv", list(map(str, [*default, *options])))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def no_work(monkeypatch):
    """Nothing may be healed."""
    monkeypatch.setattr(shrink, "heal", lambda *_: pytest.fail("something was healed"))


# --- what it makes and prints ---


def test_table_says_what_was_lost_and_the_directory_is_a_model(command, tmp_path):
    code, out, err = command()
    assert code == 0
    for words in ("kept layers: 0, 3", "whole", "cut", "healed", "perplexity", f"slm.source={tmp_path / 'out'}"):
        assert words in out
    assert "healed: KL per token" in err
    assert load_config(str(tmp_path / "out")).num_hidden_layers == 2
    assert [path.name for path in tmp_path.glob(".out*")] == []


def test_json_is_one_object_and_nothing_else(command, tmp_path):
    code, out, err = command("--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    told = json.loads(out)
    assert (told["layers"], told["neurons"], told["scores"], told["directory"]) == (
        [0, 3],
        None,
        {},
        str(tmp_path / "out"),
    )
    assert told["healed"]["kl"] < told["cut"]["kl"]
    assert told["whole"]["kl"] is None
    assert told["parameters"]["cut"] < told["parameters"]["whole"]


def test_quiet_prints_nothing(command):
    assert command("--quiet") == (0, "", "")


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--layers", "1,3"], [1, 3]),
        (["--layers", "2,"], [2]),
        (["--layers", "all", "--set", "mlp_share=0.5"], [0, 1, 2, 3]),
        (["--layers", "2", "--set", "layer_choice=influence"], None),
    ],
)
def test_layers_are_a_number_or_indices_or_all(command, tmp_path, options, kept):
    assert command(*options, "--quiet")[0] == 0
    found = load_config(str(tmp_path / "out")).kept_layers
    assert found == kept if kept else len(found) == 2


def test_half_the_neurons(command):
    told = json.loads(command("--set", "mlp_share=0.5", "--json")[1])
    assert told["neurons"] == 32


# --- scores ---


def test_scores_are_those_of_evaluate(command, tiny_config, text, model_directories, tmp_path):
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump(tiny_config.model_dump(mode="json")), encoding="utf-8")
    code, out, _ = command("--task", task, "--json")
    assert code == 0
    scores = json.loads(out)["scores"]
    assert scores.keys() == {"whole", "cut", "healed"}
    models = {
        "whole": {"slm.source": model_directories["llm"]},
        "cut": {"slm.source": model_directories["llm"], "slm.layers": 2},
        "healed": {"slm.source": str(tmp_path / "out")},
    }
    for name, values in models.items():
        rate = {"client.learning_rate": 1e-30, "federation.rounds": 1, "server.epochs": 0}
        run(changed(tiny_config, values | rate), tmp_path / name)  # whose adapter has no effect
        assert evaluate_run(tmp_path / name, "slm").value == scores[name]


def test_scores_are_shown_in_the_table(command, tiny_config, tmp_path):
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump(tiny_config.model_dump(mode="json")), encoding="utf-8")
    assert "zero-shot" in command("--task", task)[1]


def test_what_was_cut_is_not_scored_if_neurons_went(command, tiny_config, tmp_path):
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump(tiny_config.model_dump(mode="json")), encoding="utf-8")
    told = json.loads(command("--task", task, "--set", "mlp_share=0.5", "--json")[1])
    assert told["scores"].keys() == {"whole", "healed"}


# --- what is refused, before any work ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "99"], "layers: 99 of a model with 4 layers can't be kept; give a number from 1 to 4"),
        (["--layers", "1,0"], "Give indices from 0 to 3 in ascending order"),
        (["--layers", "0,4"], "Give indices from 0 to 3 in ascending order"),
        (["--layers", "x"], "--layers 'x': give the number of layers to keep"),
        (["--layers", "0"], "layers: 0 is not allowed"),
        (["--task", "digits"], "task digits: its models are no language models"),
        (["--task", "icd11"], "Did you mean 'icd10'?"),
        (["--set", "heal.siz=3"], "heal.siz: unknown key; did you mean 'size'?"),
        (["--set", "heal=null"], "set heal.epochs=0"),
        (["--set", "heal.words=1"], "heal.words: 1 is not allowed"),
        (["--set", "heal.size=300"], "216 pieces of 2 to 32 words, and heal.size 300 needs 396"),
        (["--layers", "all"], "nothing is cut from"),
        (["--set", "adapter.rank=2"], "shrink has no such setting"),
        (["--set", "mlp_share=2"], "mlp_share: 2 is not allowed"),
        (["--set", "layer_choice=best"], "choose one of even, edges, block, influence"),
        (["--set", "layer_choice=block", "--layers", "0,1"], "needs layers to be the number of layers to keep"),
        (["--set", "heal.text=/no/such.txt"], "/no/such.txt can't be read"),
        (["--set", "heal.text=/no/such"], "/no/such is not a text"),
        (["--set", "heal.text=no/such"], "heal.text: can't load no/such from the Hugging Face hub"),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else "",
)
def test_wrong_options_give_one_message_and_no_work(command, no_work, tmp_path, options, message):
    code, out, err = command(*options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("error: ") == 1
    assert not (tmp_path / "out").exists()


def test_text_that_is_not_utf_8_is_named(command, no_work, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 noir\n")
    code, _, err = command("--set", f"heal.text={tmp_path / 'latin.txt'}")
    assert code == 2
    assert "latin.txt can't be read" in err


def test_directory_that_exists_is_refused(command, no_work, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(shrink_plan, "load_text", lambda *_: pytest.fail("the text was read"))
    assert command()[::2] == (2, f"error: --out: {tmp_path / 'out'} exists already. Choose another directory.\n")


def test_directory_that_cannot_be_made_is_refused(command, no_work, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = command("--out", tmp_path / "file" / "out")
    assert code == 2
    assert "--out" in err
    assert "can't be written" in err


def encoder(place: Path) -> None:
    """An encoder without a language model's head."""
    BertModel(
        BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained(place)


def vision(place: Path) -> None:
    shape = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(**shape, image_size=8, patch_size=4)).save_pretrained(place)


def no_weights(place: Path) -> None:
    (place / "model.safetensors").unlink()


def broken_weights(place: Path) -> None:
    (place / "model.safetensors").write_bytes(b"no weights")


def no_tokenizer(place: Path) -> None:
    for file in place.glob("token*"):
        file.unlink()


@pytest.mark.parametrize("spoil", [encoder, vision, no_weights, broken_weights, no_tokenizer], ids=lambda f: f.__name__)
def test_directory_that_is_no_language_model_is_refused(command, no_work, tmp_path, model_directories, spoil):
    place = Path(shutil.copytree(model_directories["llm"], tmp_path / "model"))
    spoil(place)
    code, out, err = command(model=place)
    assert (code, out) == (2, "")
    assert err.count("error: ") == 1
    assert "model source" in err.partition("error: ")[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["/no/such/model", "./none", "/no/such.gguf", "someone/some-model", "smollm"])
def test_model_that_does_not_exist_is_refused(command, no_work, model):
    code, out, err = command(model=model)
    assert (code, out, err.count("error: ")) == (2, "", 1)
    assert "model source" in err


def test_data_of_the_task_is_read_before_anything_is_healed(command, no_work):
    code, _, err = command("--task", "arc_easy")
    assert code == 2
    assert "arc_easy" in err


# --- interruptions ---


def test_interrupted_command_says_how_to_continue_and_then_continues(command, tmp_path, cache, monkeypatch):
    real, steps = shrink.save_report, []

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shrink, "save_report", interrupted)  # after 24 steps, of which 20 are saved
    code, out, err = command("--set", "heal.epochs=4")
    assert (code, out) == (130, "")
    assert "interrupted. The finished steps are saved. Continue with: the same command" in err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(shrink, "save_report", real)
    forward = LlamaForCausalLM.forward
    monkeypatch.setattr(
        LlamaForCausalLM, "forward", lambda self, *a, **k: steps.append(self.training) or forward(self, *a, **k)
    )
    assert command("--set", "heal.epochs=4", "--quiet")[0] == 0
    assert sum(steps) == 4
    assert list(cache.glob(".unfinished-*")) == []


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_ends_the_process_with_130(text, model_directories, tmp_path, cache, interruptible_children):
    settings = [f"heal.text={text}", "heal.size=96", "heal.batch_size=1", "heal.epochs=100000"]
    options = [word for setting in settings for word in ("--set", setting)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedcollm", "shrink", model_directories["llm"], "--layers", "2", *options, "--out",
         str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        wait_for(lambda: list(cache.glob(".unfinished-*/state.safetensors")) or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert "Continue with: the same command" in err
    assert not (tmp_path / "out").exists()


def test_scores_need_no_second_healing(command, monkeypatch, tiny_config, tmp_path):
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump(tiny_config.model_dump(mode="json")), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(shrink_scores, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command("--task", task)[0] == 130
    monkeypatch.setattr(shrink, "heal", lambda *_: pytest.fail("healed again"))
    assert command("--task", task, "--quiet")[0] == 0
