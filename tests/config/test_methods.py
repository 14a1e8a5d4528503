"""Every method differs from the base in the keys that it names, and in nothing else."""

from collections.abc import Iterator
from typing import Any

import pytest

from fedcollm.config import ControlConfig, RunConfig
from fedcollm.config.baselines import changed
from fedcollm.config.choices import TABLES
from fedcollm.config.methods import CONTROLS, FURTHER, METHODS, PAPER, fits

#: With some unlabelled public examples and clients enough for every robust rule, so that every ablation is one.
BASE = RunConfig.model_validate({"task": {"clients": 7, "unlabelled_size": 10}})


#: The same with an SLM that is healed, which one ablation leaves out.
HEALED = changed(BASE, {"slm.heal": {}})
FREE = {"prompt": "{a}", "answer": "b"}


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing(config: RunConfig, base: RunConfig = BASE) -> dict[str, Any]:
    """Dotted key to the config's value, where it is not the base's."""
    one, two = dict(leaves(config.model_dump())), dict(leaves(base.model_dump()))
    return {key: one.get(key) for key in one.keys() | two.keys() if one.get(key) != two.get(key)}


# --- changed ---


def test_changed_replaces_the_named_keys_and_leaves_the_base_alone():
    before = BASE.model_dump()
    values = {"server.distillation.weight": 0.5, "seed": 3, "slm.adapter.targets": ["q_proj"]}
    assert differing(changed(BASE, values)) == values
    assert BASE.model_dump() == before
    assert changed(BASE, {}) == BASE


def test_changed_replaces_a_whole_section():
    config = changed(BASE, {"federation.server_optimizer": {"kind": "fedavgm"}})
    assert (config.federation.server_optimizer.kind, config.federation.server_optimizer.learning_rate) == (
        "fedavgm",
        1.0,
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"server.distillation.divergence": "js"}, r"server\.distillation\.divergence"),
        ({"client.proximla": 0.1}, r"client\.proximla\n.*not permitted"),
        ({"federation.participants": [], "server.epochs": 0}, "trains nothing"),
    ],
)
def test_changed_checks_what_it_makes(values, message):
    with pytest.raises(ValueError, match=message):
        changed(BASE, values)


# --- the methods ---


ABLATIONS = [name for name, method in METHODS.items() if method.changes]


def test_every_method_has_a_label_of_its_own():
    labels = [method.label for method in METHODS.values()]
    assert len(set(labels)) == len(labels)
    assert METHODS.keys() == CONTROLS.keys() | PAPER.keys() | FURTHER.keys() | set(ABLATIONS)
    assert not PAPER.keys() & set(ABLATIONS)


def test_every_choice_that_is_no_default_is_a_method():
    names = {name for table in TABLES.values() for name, choice in table.items() if choice.label}
    assert names <= set(ABLATIONS)
    assert METHODS["fedadam"].changes == {
        "federation.server_optimizer.kind": "fedadam",
        "federation.server_optimizer.learning_rate": 0.01,
    }
    assert METHODS["linear"].changes == {"client.schedule": "linear", "server.schedule": "linear"}


@pytest.mark.parametrize(
    ("method", "words"),
    [("warm", "FedCoLLM, τ = 2: server.distillation.temperature = 2.0"), ("fedavg", "FedAvg (McMahan et al.")],
)
def test_description_says_what_a_method_is(method, words):
    assert METHODS[method].description.startswith(words)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_valid_configuration_and_a_function_of_the_base(method):
    configs = METHODS[method].configure(BASE)
    assert configs == METHODS[method].configure(BASE)
    assert len(configs) == (7 if method == "standalone" else 1)
    for config in configs.values():
        assert RunConfig.model_validate(config.model_dump()) == config
        assert config.model_dump() == RunConfig.model_validate_json(config.model_dump_json()).model_dump()


@pytest.mark.parametrize("method", ABLATIONS)
def test_ablation_differs_in_the_keys_that_it_names_and_no_other(method):
    (config,), changes = METHODS[method].configure(HEALED).values(), METHODS[method].changes
    assert config == changed(HEALED, changes)
    assert differing(config, HEALED)
    assert all(key.startswith(tuple(changes)) for key in differing(config, HEALED))


@pytest.mark.parametrize(
    "values",
    [
        {"task.unlabelled_size": 0},
        {"server.unlabelled_per_round": 0},
        {"task.name": "custom", "task.format": FREE},
        {"task.name": "custom", "task.format": {"boxes": "coco"}},
        {"task.name": "shapes"},
    ],
)
def test_plus_has_no_pseudo_labels_where_nothing_could_get_them(values):
    config = METHODS["fedcollm_plus"].configure(changed(BASE, values))[""]
    assert config.server.pseudo_labels is None
    assert config.server.distillation.teach_where_better
    assert METHODS["fedcollm_plus"].configure(BASE)[""].server.pseudo_labels is not None


def test_no_two_ablations_are_the_same():
    configs = [METHODS[method].configure(HEALED)[""] for method in ("fedcollm", *ABLATIONS)]
    assert all(one != two for i, one in enumerate(configs) for two in configs[:i])


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("fedcollm", {}),
        ("fedavg", {"server.epochs": 0}),
        ("fedavg_ce", {"server.distillation.weight": 0.0, "server.distillation.llm_weight": 0.0}),
        ("llm2slm", {"server.distillation.llm_weight": 0.0, "federation.participants": []}),
        ("centralized", {"server.epochs": 0, "task.partition.kind": "pooled"}),
        (
            "centralized_llm",  # the LLM in the SLM's place: all layers
            {
                "server.epochs": 0,
                "task.partition.kind": "pooled",
                "task.partition.with_public": True,
                "slm.layers": None,
            },
        ),
    ],
)
def test_method_of_the_paper_differs_in_these_keys(method, values):
    (config,) = METHODS[method].configure(BASE).values()
    assert differing(config) == values


def test_standalone_is_a_run_a_client():
    runs = METHODS["standalone"].configure(BASE)
    assert {name: differing(config) for name, config in runs.items()} == {
        f"client-{k}": {"server.epochs": 0, "federation.participants": [f"{k}"]} for k in range(7)
    }


def test_one_way_distillation_without_a_weight_gets_one():
    (config,) = METHODS["llm2slm"].configure(changed(BASE, {"server.distillation.weight": 0.0})).values()
    assert config.server.distillation.weight == 1.0


def test_centralized_llm_takes_every_optimizer_setting_of_the_server():
    server = {"schedule": "linear", "warmup_ratio": 0.2, "betas": (0.1, 0.2), "weight_decay": 0.3, "batch_size": 4}
    base = changed(
        BASE, {f"server.{key}": value for key, value in server.items()} | {"client.gradient_accumulation": 2}
    )
    (config,) = METHODS["centralized_llm"].configure(base).values()
    assert {key: getattr(config.client, key) for key in server} == server
    assert config.client.gradient_accumulation == 1


SOLVED = {"server.epochs": 0, "federation.rounds": 1, "control.columns": 2048, "control.ridge": 0.3}


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("majority", {"control.features": "constant"}),
        ("closed_form", {"control.features": "ngrams"}),
        ("closed_form_slm", {"control.features": "slm", "control.ridge": 0.03}),
        ("closed_form_both", {"control.features": "ngrams_slm", "control.ridge": 0.06}),
        ("closed_form_public", {"control.features": "ngrams", "federation.participants": []}),
    ],
)
def test_control_differs_in_these_keys(method, values):
    (config,) = METHODS[method].configure(BASE).values()
    assert differing(config) == SOLVED | values


def test_control_drops_what_only_training_has_and_asks_every_client():
    base = changed(
        BASE,
        {
            "client.ranks": [2],
            "client.personal": True,
            "federation.aggregation": "product",
            "federation.upload": "float16",
            "federation.fraction": 0.5,
            "federation.max_update_norm": 0.1,
        },
    )
    (config,) = METHODS["closed_form"].configure(base).values()
    assert differing(config) == SOLVED | {"control.features": "ngrams"}


def test_control_is_as_secure_as_the_method_and_fits_into_the_fixed_point():
    secure = {"enabled": True, "threshold": 3, "value_range": 0.25}
    base = changed(BASE, {"task.clients": 4, "federation.secure_aggregation": secure})
    (config,) = METHODS["closed_form"].configure(base).values()
    kept = config.federation.secure_aggregation
    assert (kept.enabled, kept.threshold, kept.value_range) == (True, 3, 1.0)
    (public,) = METHODS["closed_form_public"].configure(base).values()
    assert public.federation.secure_aggregation.enabled is False


@pytest.mark.parametrize("method", sorted(METHODS.keys() - CONTROLS.keys()))
def test_no_other_method_keeps_a_control(method):
    base = BASE.model_copy(update={"control": ControlConfig(features="ngrams")})
    assert {config.control for config in METHODS[method].configure(base).values()} == {None}


@pytest.mark.parametrize(
    "values",
    [
        {"task.name": "custom", "task.format": {"prompt": "{a}", "answer": "b"}},
        {
            "federation.aggregation": "uniform",
            "federation.privacy": {
                "level": "example",
                "clip": 1.0,
                "noise_multiplier": 1.0,
                "delta": 1e-5,
                "sampling_rate": 0.1,
            },
        },
        {"task.name": "shapes"},
        {"task.name": "custom", "task.format": {"boxes": "voc"}},
    ],
    ids=["free answers", "example-level privacy", "drawn boxes", "own boxes"],
)
def test_controls_fit_no_free_answers_no_boxes_and_no_dp_sgd(values):
    assert [name for name in METHODS if not fits(name, changed(BASE, values))][:5] == list(CONTROLS)
    assert all(fits(name, BASE) for name in CONTROLS)


@pytest.mark.parametrize("method", ["standalone", "centralized", "centralized_llm"])
def test_single_parties_need_no_others(method):
    configs = METHODS[method].configure(changed(BASE, {"federation.min_clients": 2}))
    assert {config.federation.min_clients for config in configs.values()} == {1}


def test_text_control_trains_the_llm_on_the_text_that_heals_the_slm(tiny_config):
    config = changed(tiny_config, {"slm.heal": {"text": "a.txt", "size": 40, "learning_rate": 8e-4}})
    found = METHODS["fedavg_ce_text"].configure(config)[""]
    assert found.llm.heal == config.slm.heal.model_copy(update={"objective": "next_token", "learning_rate": 1e-4})
    assert found.llm.layers is None
    assert found.server.distillation.weights == (0, 0)
    assert found.slm == config.slm


def test_labelled_control_has_the_same_data_and_no_unlabelled_batches():
    (config,), (plain,) = (METHODS[name].configure(BASE).values() for name in ("fedavg_ce_labelled", "fedavg_ce"))
    assert differing(config, plain) == {"server.unlabelled_per_round": 0}


def test_plus_averages_products_where_no_layer_can_be_transferred():
    other = {"llm.source": "another"}
    config = METHODS["fedcollm_plus"].configure(changed(BASE, other))[""]
    assert (config.server.layer_transfer, config.federation.aggregation) == (0, "product")
    secure = other | {"federation.secure_aggregation.enabled": True, "task.clients": 3}
    config = METHODS["fedcollm_plus"].configure(changed(BASE, secure))[""]
    assert (config.federation.aggregation, config.federation.server_optimizer.kind) == ("mean", "fedavgm")


def test_plus_needs_sums_only_where_layers_are_transferred():
    secure = {"federation.secure_aggregation.enabled": True, "task.clients": 3}
    config = METHODS["fedcollm_plus"].configure(changed(BASE, secure))[""]
    assert config.server.layer_transfer == 1
    assert config.server.pseudo_labels is not None


def test_changed_leaves_the_values_that_it_is_given_alone():
    values = {"slm.heal": {"size": 5}, "slm.heal.words": 7}
    assert changed(BASE, values).slm.heal.words == 7
    assert values == {"slm.heal": {"size": 5}, "slm.heal.words": 7}
