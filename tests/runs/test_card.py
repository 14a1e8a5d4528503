"""A model card says what a run's files tell, and no more."""

import re

import pytest
import yaml

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.config.baselines import changed
from fedcollm.runs.card import CARD, Facts, Form, card, interval, license_of, run_facts
from fedcollm.runs.portable import portable_of
from fedcollm.runs.runner import run


def said(config, facts=None, role="slm", **options):
    return card(portable_of(config, role, {}, {}), facts, **options)


def test_run_writes_the_cards_of_its_adapters(tiny_config, tmp_path):
    config = changed(tiny_config, {"federation.rounds": 1})
    run(config, tmp_path / "run")
    facts = run_facts(tmp_path / "run", "llm")
    text = (tmp_path / "run" / "adapters" / "llm" / CARD).read_text()
    assert text == said(config, facts, "llm")
    right = round(facts.score[1] * 48)
    assert f"**{right / 48:.3f}** (95 % interval" in text
    assert "on 48 test examples of this run, which nobody trained on, after round 1" in text
    assert "Private examples of 2 clients, which never left them: 0: 40, 1: 40." in text
    assert "Other examples: 96 public, labelled, 0 public, unlabelled, 48 test." in text
    head = yaml.safe_load(re.match(r"---\n(.*?)---", text, re.DOTALL)[1])
    assert (head["library_name"], head["base_model"]) == ("peft", "llm")  # no path of this machine
    assert str(tmp_path) not in text


def test_training_is_told_as_it_was():
    config = RunConfig.model_validate(
        {
            "slm": {"layers": 10, "mlp_share": 0.5, "heal": {"size": 1000}},
            "federation": {
                "secure_aggregation": True,
                "aggregation": "uniform",
                "privacy": {"level": "client", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5},
            },
            "client": {"max_grad_norm": None},
        }
    )
    text = said(config, Facts(config, 3, {"a": 1200}, epsilon=2.5))
    assert "`smollm2-135m`, cut to 10 layers (even), with 50 % of each MLP's neurons, healed by distillation" in text
    assert "1,000 pieces of the public text `icd10`. License of the base: apache-2.0." in text
    assert "Secure aggregation: yes" in text
    assert "Differential privacy: client level, ε = 2.5 spent at δ = 1e-05." in text
    assert "3 rounds" in text
    assert "under differential privacy, which bounds what it can repeat" in text
    assert "a: 1,200" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"server.epochs": 0}, "federated averaging of the SLM's adapters, 1 round."),
        ({"server.distillation.weight": 0.0}, "training of both models on the public set"),
        ({"server.distillation.llm_weight": 0.0}, "between LLM and SLM, one way, 1 round."),
        ({}, "between LLM and SLM, 1 round."),
    ],
)
def test_method_is_named(tiny_config, changes, words):
    config = changed(tiny_config, changes)
    assert words in said(config, Facts(config, 1))


def test_what_is_not_known_is_not_said(tiny_config):
    text = said(tiny_config)
    assert "## Scores" not in text
    assert "in the directory of the run, which is somewhere else" in text
    assert "see the base's own" in text
    assert "--with-base" in text  # the base is a directory of this machine
    assert 'from_pretrained("base"' in said(tiny_config, has_base=True)
    hub = changed(tiny_config, {"slm.source": "org/model"})
    assert 'from_pretrained("org/model"' in said(hub)
    assert "llama_cpp" in said(hub, form=Form("x", "gguf", "m.gguf"))
    assert 'InferenceSession("m.onnx")' in said(hub, form=Form("x", "onnx", "m.onnx"))


def test_script_of_the_card_asks_as_the_task_does(tiny_config):
    chat = changed(
        tiny_config, {"task.format.chat": True, "task.format.choices": None, "task.format.max_new_tokens": 9}
    )
    text = said(chat, has_base=True)
    assert "apply_chat_template" in text
    assert "max_new_tokens=9" in text
    for one in (text, said(tiny_config, has_base=True)):
        compile(re.search(r"```python\n(.*?)```", one, re.DOTALL)[1], "card", "exec")


def test_license_is_read_from_the_card_of_the_base(tmp_path):
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\n")
    assert license_of(ModelConfig(source=str(tmp_path))) == "mit"
    (tmp_path / "README.md").write_text("# A model without a license: head\n")
    assert license_of(ModelConfig(source=str(tmp_path))) == "see the base's own"


def test_interval_is_wilsons_and_only_for_means_over_examples():
    low, high = interval(0.56, 300, [1.0] * 168 + [0.0] * 132)
    assert (round(low, 4), round(high, 4)) == (0.5034, 0.6151)
    assert interval(1.0, 10, [1.0] * 10)[1] == pytest.approx(1.0)
    assert interval(0.7, 4, [1.0, 1.0, 0.0, 0.0]) is None  # a rate over words, not over examples
    assert interval(0.7, 0, []) is None
