"""A configuration in words: what is said, and what takes no effect and so is not."""

import pytest

from fedcollm.config import RunConfig
from fedcollm.config import words as module
from fedcollm.config.words import (
    changes_in_words,
    everything_in_words,
    facts_in_words,
    inputs_in_words,
    settings_in_words,
)

TAUGHT = {"divergence": "jensen_shannon", "teach_where_better": True, "warmup_rounds": 4}
ADAM = {"kind": "fedadam", "learning_rate": 0.02, "momentum": 0.5, "decay": 0.5, "tau": 0.5}
FREEZE = {"adapter": {"freeze_a": True}}
LIMITS = {"threshold": 3, "value_range": 2, "max_weight": 8}
NO_CLIENTS = {"participants": []}
EXAMPLE = {"level": "example", "clip": 2, "noise_multiplier": 1.5, "delta": 1e-5, "sampling_rate": 0.25}
CLIENT = {"level": "client", "clip": 2, "noise_multiplier": 1.5, "delta": 1e-5}


def config(**values) -> RunConfig:
    return RunConfig.model_validate(values)


@pytest.mark.parametrize(
    ("values", "key_words"),
    [
        ({}, []),
        ({"server": {"distillation": {"divergence": "reverse_kl"}}}, ["reverse KL"]),
        ({"server": {"distillation": TAUGHT}}, ["Jensen–Shannon", "knows better", "first 4 rounds"]),
        ({"server": {"distillation": {"across_tokenizers": True}}}, ["different tokenizers"]),
        ({"server": {"layer_transfer": 0.5}}, ["50%"]),
        ({"federation": {"server_optimizer": {"learning_rate": 0.5}}}, ["server learning rate of 0.5"]),
        ({"federation": {"server_optimizer": {"kind": "fedavgm"}}}, ["FedAvgM"]),
        (
            {"federation": {"server_optimizer": ADAM}},
            ["FedAdam", "rate of 0.02", "momentum of 0.5", "moment decays by 0.5", "τ = 0.5"],
        ),
        ({"slm": FREEZE}, ["small model (FFA-LoRA)"]),
        ({"slm": FREEZE, "llm": FREEZE}, ["large model (FFA-LoRA)", "small model (FFA-LoRA)"]),
        ({"slm": {"adapter": {"kind": "dora", "rank": 4}}}, ["kind dora", "rank 4"]),
        ({"llm": {"adapter": {"options": {"use_rslora": True}}}}, ["llm.adapter.options: {'use_rslora': True}"]),
        ({"client": {"proximal": 0.01, "max_grad_norm": 0.5}}, ["norm of 0.5 at the clients", "μ = 0.01"]),
        (
            {"client": {"schedule": "linear", "warmup_ratio": 0.1}},
            ["falls linearly to 0 at the clients", "over 10% of"],
        ),
        ({"client": {"weight_decay": 0.1, "betas": [0.8, 0.9]}}, ["decay of 0.1 at the clients", "(0.8, 0.9) at the"]),
        ({"client": {"gradient_accumulation": 4, "ranks": [2, 4], "personal": True}}, ["4 batches", "2, 4", "keeps"]),
        ({"server": {"max_grad_norm": 2, "gradient_accumulation": 2}}, ["2 batches on the server", "norm of 2 on the"]),
        (
            {"federation": {"upload": "float16", "fraction": 0.5, "participants": ["0", "2"]}},
            ["50% of the clients", "0, 2", "float16"],
        ),
        ({"federation": {"min_clients": 2, "max_update_norm": 3}}, ["at least 2 clients", "norm of at most 3"]),
        ({"federation": {"secure_aggregation": True, "max_update_norm": 2}}, ["norm of at most 2"]),
        (
            {"federation": {"max_adapter_value": 5, "max_adapter_norm": 6, "max_loss": 7}},
            ["values are at most 5", "norm of at most 6", "exceeds 7 changes nothing"],
        ),
        (
            {"federation": {"max_adapter_value": None, "max_adapter_norm": None, "max_loss": None}},
            ["federation.max_adapter_value: null", "federation.max_adapter_norm: null", "federation.max_loss: null"],
        ),
        ({"federation": {"deadlines": {"training": 9, "absence": 8}}}, ["waits 9 s", "waits 8 s"]),
        (
            {"federation": {"aggregation": "uniform", "privacy": EXAMPLE}},
            ["norm of 2", "1.5 times", "δ = 1e-05", "probability 0.25"],
        ),
        (
            {"federation": {"secure_aggregation": {"enabled": True, **LIMITS}, "deadlines": {"phase": 9}}},
            ["waits 9 s", "needs 3 clients", "up to 2", "up to 8 examples"],
        ),
        (
            {"federation": {"secure_aggregation": {"simulate_quantization": True, "value_range": 2}}},
            ["up to 2", "rounded"],
        ),
    ],
    ids=str,
)
def test_what_a_run_does_otherwise_is_said(values, key_words):
    said = settings_in_words(config(**values))
    assert len(said) == len(key_words)
    assert [key_word for key_word, phrase in zip(key_words, said, strict=True) if key_word not in phrase] == []


@pytest.mark.parametrize(
    "values",
    [
        {"llm": FREEZE, "server": {"epochs": 0}},
        {"server": {"epochs": 0, "layer_transfer": 1, "max_grad_norm": 2, "distillation": TAUGHT}},
        {"server": {"distillation": {**TAUGHT, "weight": 0}}},
        {"client": {"proximal": 1, "max_grad_norm": 2, "personal": True}, "federation": NO_CLIENTS},
        {"federation": {**NO_CLIENTS, "upload": "float16", "server_optimizer": ADAM, "deadlines": {"phase": 1}}},
        {"federation": {"server_optimizer": {**ADAM, "kind": "average", "learning_rate": 1}}},
        {"federation": {"secure_aggregation": {"enabled": False, **LIMITS}, "deadlines": {"phase": 1}}},
        {
            "federation": {
                "secure_aggregation": {"enabled": True, "max_weight": 8, "simulate_quantization": True},
                "aggregation": "uniform",
            }
        },
        {"slm": {"adapter": {"rank": 4, "alpha": 2, "dropout": 0.5, "kind": "ia3"}}},
    ],
    ids=str,
)
def test_what_takes_no_effect_is_not_said(values):
    said = settings_in_words(config(**values))
    assert [phrase for phrase in said if "kind ia3" not in phrase] == []


def test_distillation_of_the_llm_alone_is_distillation():
    weights = {"weight": 0, "llm_weight": 1}
    (said,) = settings_in_words(config(server={"distillation": {**weights, "warmup_rounds": 2}}))
    assert "first 2 rounds" in said


def test_privacy_of_clients_has_its_own_range_and_no_sampling_rate():
    federation = {
        "aggregation": "uniform",
        "privacy": CLIENT,
        "secure_aggregation": {"enabled": True, "value_range": 2},
    }
    said = settings_in_words(config(federation=federation))
    assert len(said) == 3
    assert not any("up to" in phrase or "probability" in phrase for phrase in said)


def test_every_run_says_rounds_training_and_averaging():
    said = facts_in_words(config(client={"epochs": 2, "learning_rate": 0.003}, server={"batch_size": 4}))
    for key_word in ("5 rounds", "2 epochs", "0.003", "batches of 4", "λ = 1, τ = 1", "number of examples"):
        assert any(key_word in phrase for phrase in said), key_word
    assert any("no secure aggregation" in phrase for phrase in said)
    assert "no differential privacy" in said


@pytest.mark.parametrize(
    ("values", "key_word"),
    [
        ({"server": {"epochs": 0}}, "no work on the public set"),
        ({"federation": NO_CLIENTS}, "no clients"),
        ({"federation": {"rounds": 1}}, "1 round"),
        ({"federation": {"aggregation": "uniform"}}, "equal weights"),
        ({"federation": {"aggregation": "product"}}, "products B A"),
        ({"federation": {"secure_aggregation": True}}, "masked by secure aggregation"),
        ({"federation": {"aggregation": "uniform", "privacy": EXAMPLE}}, "level of each example"),
        ({"federation": {"aggregation": "uniform", "privacy": EXAMPLE}}, "16 examples in memory at once"),
        ({"server": {"distillation": {"llm_weight": 0}}}, "0 for the large model"),
        ({"server": {"distillation": {"weight": 0, "temperature": 2}}}, "cross-entropy only"),
    ],
    ids=str,
)
def test_facts_are_those_of_the_run(values, key_word):
    assert sum(key_word in phrase for phrase in facts_in_words(config(**values))) == 1


def test_run_without_clients_says_nothing_of_updates():
    # rounds, no clients, what the SLM is, the server's training, λ
    assert len(facts_in_words(config(federation=NO_CLIENTS))) == 5


def test_key_without_a_phrase_is_said_all_the_same(monkeypatch):
    monkeypatch.delitem(module.PHRASES, "client.proximal")
    assert settings_in_words(config(client={"proximal": 0.5})) == ["client.proximal: 0.5"]
    assert inputs_in_words(config(slm={"layers": None}, seed=3)) == ["seed: 3", "slm.layers: null"]


def test_everything_is_all_of_it():
    one = config(seed=3, client={"proximal": 0.5})
    assert everything_in_words(one) == facts_in_words(one) + settings_in_words(one) + inputs_in_words(one)


@pytest.mark.parametrize(
    ("slm", "words"),
    [
        ({"layers": 10}, "the small model is 10 layers of smollm2-135m, not healed"),
        ({"layers": [0, 3], "heal": {}}, "the small model is 2 layers of smollm2-135m, healed on the text icd10"),
        ({"layers": [0, 3], "heal": {"epochs": 0}}, "the small model is 2 layers of smollm2-135m, not healed"),
        (
            {"layers": None, "mlp_share": 0.5, "heal": {"text": "a.txt"}},
            "the small model is 50% of each MLP of smollm2-135m, healed on the text a.txt",
        ),
        ({"layers": None}, None),
    ],
)
def test_facts_say_what_was_cut_and_whether_it_was_healed(slm, words):
    said = [fact for fact in facts_in_words(config(slm=slm)) if "model is" in fact]
    assert said == ([words] if words else [])


def test_changes_name_every_key_with_both_values():
    healed = config(client={"learning_rate": 1e-4}, slm={"layers": [0, 3], "heal": {"size": 7}})
    assert changes_in_words(healed, config()) == [
        "slm.layers: [0, 3], was 10",
        "slm.heal: yes, was null",
        "slm.heal.size: 7, was null",
        "client.learning_rate: 0.0001, was 0.001",
    ]
    back = changes_in_words(config(), healed)
    assert back[0] == "slm.layers: 10, was [0, 3]"
    assert set(back[1:]) == {
        "slm.heal: null, was yes",
        "slm.heal.size: null, was 7",
        "client.learning_rate: 0.001, was 0.0001",
    }
    assert changes_in_words(healed, healed) == []


def test_examples_that_there_are_not_are_not_said_to_be_used():
    said = [settings_in_words(config(server={"unlabelled_per_round": 48}, task={"unlabelled_size": n})) for n in (0, 9)]
    assert said == [[], ["each round uses the next 48 unlabelled public examples"]]


def test_text_with_line_breaks_stays_on_one_line():
    values = {"path": "x.csv", "format": {"prompt": "{note}\ndepartment: “é”", "answer": "kind"}}
    assert 'task.format.prompt: "{note}\\ndepartment: “é”"' in inputs_in_words(config(task=values))
