"""Options of PEFT that a configuration must not set, and patterns that take years."""

import math
import time

import pytest

from fedcollm.config.loading import load_config
from fedcollm.errors import UserError

SLOW = "(([a-z_.0-9]+)+)+!"


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": {"embed_tokens": [2, 3]}},
        {"trainable_token_indices": [2, 3]},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"layer_replication": [[0, 2], [0, 2]]},
        {"megatron_core": "os"},
        {"megatron_config": {"a": 1}},
        {"inference_mode": True},
        {"arrow_config": {"x": "y"}},
    ],
    ids=str,
)
def test_what_sends_more_than_the_adapter_is_refused(options):
    with pytest.raises(UserError, match=rf"slm\.adapter\.options.*{next(iter(options))}.*Remove it"):
        load_config("icd10", **{"slm.adapter.options": options})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("options", {"exclude_modules": SLOW}),
        ("options", {"exclude_modules": "q_proj"}),
        ("options", {"exclude_modules": [SLOW]}),
        ("options", {"target_modules": ".*"}),
        ("options", {"feedforward_modules": "mlp"}),
        ("options", {"rank_pattern": {SLOW: 4}}),
        ("options", {"alpha_pattern": {"^model": 4}}),
        ("options", {"layers_pattern": "(a+)+"}),
        ("options", {"layers_pattern": ["(a+)+"]}),
        ("options", {"some_future_option": {"a": [{"b": [SLOW]}]}}),
        ("targets", ["q_proj", "(a+)+"]),
        ("targets", [""]),
    ],
    ids=str,
)
def test_pattern_in_place_of_a_name_is_refused_at_once(key, value):
    start = time.process_time()
    with pytest.raises(UserError, match=rf"slm\.adapter\.{key}.*(plain name|list of names)"):
        load_config("icd10", **{f"slm.adapter.{key}": value})
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adapter.rank", 10**9),
        ("adapter.rank", 2**16 + 1),
        ("adapter.alpha", 1e7),
        ("adapter.options", {"r": 10**9}),
        ("adapter.options", {"rank_pattern": {"q_proj": 10**9}}),
        ("adapter.options", {"layers_to_transform": [0, 10**9]}),
        ("adapter.options", {"alpha_pattern": {"q_proj": math.nan}}),
        ("layers", 10**29),
        ("layers", [0] * 10_001),
        ("layers", [10**9]),
    ],
    ids=lambda value: f"{value!s:.30}",
)
def test_size_that_no_model_has_is_refused_in_a_short_message(key, value):
    with pytest.raises(UserError, match=rf"slm\.{key}") as refusal:
        load_config("icd10", **{f"slm.{key}": value})
    assert len(str(refusal.value)) < 700


@pytest.mark.parametrize(
    "options",
    [
        {"bias": "none", "modules_to_save": None, "inference_mode": False},
        {"exclude_modules": ["q_proj", "layers.0.self_attn"], "rank_pattern": {"model.layers.1.mlp": 2}},
        {"layers_pattern": "layers", "layers_to_transform": [0]},
        {"init_lora_weights": "pissa_niter_16"},
    ],
    ids=str,
)
def test_names_and_defaults_are_accepted(options):
    assert load_config("icd10", **{"slm.adapter.options": options}).slm.adapter.options == options
