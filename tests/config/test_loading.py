"""Configurations: what is refused, and with which words."""

import shlex
from pathlib import Path

import pytest
import yaml

from fedcollm.config import HealingConfig, PseudoLabelConfig, RunConfig
from fedcollm.config.loading import commented_yaml, load_config, parse_settings, preset_description, preset_names
from fedcollm.errors import UserError

PAPER = {"gpt2", "opt", "llama2"}


def refused(preset: str | Path = "icd10", **overrides) -> str:
    """The message of the error that these overrides cause."""
    with pytest.raises(UserError) as caught:
        load_config(preset, **overrides)
    return str(caught.value)


# --- presets and files ---


def test_presets_are_those_that_the_design_names():
    tasks = {
        "arc_challenge",
        "arc_easy",
        "commonsense_qa",
        "digits",
        "icd10",
        "openbookqa",
        "professions",
        "shapes",
        "spoken_words",
    }
    own_files = {"coco", "photos", "speech_commands", "wav2vec2", "whisper"}
    shrunk = {"gemma_shrunk", "llama_shrunk", "qwen_shrunk", "smollm2_shrunk"}
    assert set(preset_names()) == tasks | own_files | {"fedcollm_plus", "qwen", "smollm2"} | shrunk | PAPER


@pytest.mark.parametrize("name", preset_names())
def test_preset_loads_and_describes_itself(name):
    assert load_config(name).name == name
    assert preset_description(name)[0] not in "# "


def test_default_preset_is_icd10_the_default_configuration_but_for_what_it_tunes():
    evaluation = {"clients": "last", "batch_size": 64}
    tuned = RunConfig.model_validate(
        {
            "task": {"private_size": 40, "public_size": 80, "unlabelled_size": 1280},
            "client": {"learning_rate": 3e-3, "max_grad_norm": 1.0},
            "server": {"max_grad_norm": 1.0, "unlabelled_per_round": 480},
            "slm": {"layers": [0, 1, 2, *range(23, 30)], "heal": {"text": "icd10"}},
            "evaluation": evaluation,
        }
    )
    assert load_config() == load_config("icd10") == tuned


@pytest.mark.parametrize("name", sorted(PAPER))
def test_presets_of_the_paper_have_its_rank_and_whole_models(name):
    config = load_config(name)
    assert (config.slm.adapter.rank, config.llm.adapter.rank) == (8, 8)
    assert (config.slm.layers, config.llm.layers) == (None, None)
    assert config.task.clients == 4


@pytest.mark.parametrize("name", preset_names())
def test_commented_yaml_of_a_preset_is_the_same_configuration(name):
    config = load_config(name)
    assert RunConfig.model_validate(yaml.safe_load(commented_yaml(config))) == config


def test_commented_yaml_keeps_awkward_values(tmp_path):
    form = {"prompt": "Question: {q} # 1\nAnswer:", "answer": "yes", "choices": ["no", "1", "a: b"], "group": "null"}
    config = load_config(
        "icd10",
        name="a: b # c",
        task={"name": "custom", "path": "/some/data #1", "format": form},
        slm={"adapter": {"targets": ["q_proj"], "options": {"use_rslora": True, "init": "x"}}},
        federation={"participants": ["0", "1"]},
        client={"learning_rate": 1e-9},
    )
    file = tmp_path / "mine.yaml"
    file.write_text(commented_yaml(config))
    assert load_config(file) == config


def test_commented_yaml_names_every_key_and_explains_it():
    lines = commented_yaml(RunConfig()).splitlines()
    assert any(line.startswith("  rounds: 5  # rounds") for line in lines)
    assert any(line.startswith("  clients: 4  # number of clients K") for line in lines)
    assert any(line.startswith("    temperature: 1.0  # temperature τ") for line in lines)


def test_commented_yaml_shows_the_keys_of_sections_that_are_null():
    lines = commented_yaml(RunConfig()).splitlines()
    size = f"    # size: {HealingConfig().size}  # pieces of text to train on"
    assert lines[lines.index("slm:") :].index(size) > 0
    assert any(line.startswith("    # clip:  # ") for line in lines)  # has no default


def uncommented(text: str, sections: set[str]) -> str:
    """A configuration in which these sections are no longer null, but have the keys that were comments."""
    lines, key = [], ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            lines.append(line.replace("# ", "", 1) if key in sections else line)
        else:
            key = line.split(":")[0].strip()
            lines.append(line.replace(": null", ":", 1) if key in sections else line)
    return "\n".join(lines)


def test_keys_of_a_null_section_can_be_uncommented():
    text = commented_yaml(load_config({"task": {"unlabelled_size": 8}}))
    config = RunConfig.model_validate(yaml.safe_load(uncommented(text, {"heal", "pseudo_labels"})))
    assert config.slm.heal == config.llm.heal == HealingConfig()
    assert config.server.pseudo_labels == PseudoLabelConfig()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("heal.size=4800", HealingConfig(size=4800)), ("heal={}", HealingConfig()), ("heal=null", None)],
)
@pytest.mark.parametrize("role", ["llm", "slm"])
def test_null_section_is_switched_on_by_a_key_or_by_an_empty_mapping(role, setting, expected):
    config = load_config({"name": "mine"}, **parse_settings([f"{role}.{setting}"]))
    assert getattr(config, role).heal == expected


def test_pseudo_labels_are_switched_on_by_an_empty_mapping():
    config = load_config("icd10", **parse_settings(["server.pseudo_labels={}", "task.unlabelled_size=8"]))
    assert config.server.pseudo_labels == PseudoLabelConfig()


def test_file_overrides_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nclient: {epochs: 3}\n")
    config = load_config(file)
    assert (config.name, config.client.epochs, config.client.batch_size) == ("mine", 3, 16)


def test_a_file_without_a_name_gives_its_own(tmp_path):
    file = tmp_path / "notes.yaml"
    file.write_text("client: {epochs: 3}\n")
    assert load_config(file).name == "notes"
    file.write_text("name: mine\n")
    assert load_config(file).name == "mine"


def test_last_of_repeated_settings_wins():
    key = "federation.secure_aggregation"
    settings = parse_settings([f"{key}=true", f"{key}.enabled=false", f"{key}=true"])
    assert load_config("icd10", **settings).federation.secure_aggregation.enabled


def test_bool_is_short_for_secure_aggregation_and_for_nothing_else():
    assert "federation.privacy" in refused(**{"federation.privacy": True})
    assert "client" in refused(client=True)


@pytest.mark.parametrize("name", ["", " ", "..", "/abs/x", "a/../../b", "a\\b", "a\nb", "\ud800"])
def test_name_that_is_no_directory_is_refused(name):
    assert "without slashes" in refused(name=name)


@pytest.mark.parametrize("value", ["{a: 1, a: 2}", "9" * 5000, "[" * 3000])
def test_value_that_yaml_cannot_read_is_refused(value):
    with pytest.raises(UserError, match="YAML"):
        parse_settings([f"name={value}"])


def test_empty_file_is_the_default(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("# nothing\n")
    assert load_config(file) == RunConfig(name="mine")


@pytest.mark.parametrize("name", ["notes.csv", "Notes.JSONL", "notes.csv.gz", "a table.json", "folder"])
def test_data_in_place_of_a_configuration_is_told_where_it_belongs(tmp_path, name):
    file = tmp_path / name
    file.mkdir() if name == "folder" else file.write_text('[{"a": 1}]')
    message = refused(file)
    assert f"fedcollm init --data {shlex.quote(str(file))} > my.yaml" in message


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "y" * 5000, "a\0b", "notes.csv"])
def test_name_that_no_file_can_have_is_the_users_error(name):
    message = refused(name)
    assert message.startswith("no preset or configuration file")
    assert len(message) < 700


def test_unknown_preset_suggests_the_nearest():
    message = refused("icd11")
    assert "no preset or configuration file 'icd11'. Did you mean 'icd10'?" in message
    assert "arc_easy" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "must be a mapping"),
        (b"a: [1\n", "is not valid YAML"),
        (b"\xff\xfe\x00", "can't be read"),
    ],
)
def test_broken_file_is_the_users_error(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    assert message in refused(file)
    assert str(file) in refused(file)


# --- overrides ---


def test_dotted_and_nested_overrides_are_the_same():
    nested = load_config("gpt2", slm={"adapter": {"rank": 2}}, client={"epochs": 2})
    assert nested == load_config("gpt2", **{"slm.adapter.rank": 2, "client.epochs": 2})
    assert nested.slm.adapter.rank == 2
    assert nested.slm.adapter.targets == ["c_attn"]  # of the preset
    assert nested.slm.source == "openai-community/gpt2"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("client.epochs=2", {"client.epochs": 2}),
        ("client.learning_rate=1.0e-3", {"client.learning_rate": 0.001}),
        ("llm.layers=null", {"llm.layers": None}),
        ("llm.adapter.targets=[q_proj, v_proj]", {"llm.adapter.targets": ["q_proj", "v_proj"]}),
        ("name=a=b", {"name": "a=b"}),
        (" name =x", {"name": "x"}),
    ],
)
def test_settings_are_read_as_yaml(setting, expected):
    assert parse_settings([setting]) == expected


def test_learning_rate_may_be_written_without_a_point():
    # YAML 1.1 takes 1e-3 for a string
    assert load_config("icd10", **parse_settings(["client.learning_rate=1e-3"])).client.learning_rate == 0.001


@pytest.mark.parametrize("setting", ["client.epochs", "=3", "", "client.epochs:3"])
def test_setting_without_key_or_value_says_how_to_write_it(setting):
    with pytest.raises(UserError, match=r"write it as key=value, such as --set federation.rounds=2"):
        parse_settings([setting])


@pytest.mark.parametrize("value", ["#", " #", "# a", "Q # A", "[a] # b"])
def test_setting_does_not_lose_what_yaml_takes_for_a_comment(value):
    with pytest.raises(UserError, match="begins a comment") as error:
        parse_settings([f"task.format.delimiter={value}"])
    assert f"""--set 'task.format.delimiter="{value.strip()}"'""" in str(error.value)
    assert parse_settings(['a="#"', "b=Q#A"]) == {"a": "#", "b": "Q#A"}


def test_setting_whose_value_is_not_yaml_is_the_users_error():
    with pytest.raises(UserError, match=r"--set 'llm.adapter.targets=\[q_proj': the value is not valid YAML"):
        parse_settings(["llm.adapter.targets=[q_proj"])


# --- what is refused ---


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("federation.round", "rounds"),
        ("client.lerning_rate", "learning_rate"),
        ("cliemt", "client"),
        ("slm.adapter.rnak", "rank"),
        ("server.distillation.temprature", "temperature"),
        ("task.partition.alfa", "alpha"),
    ],
)
def test_unknown_key_suggests_the_nearest(key, nearest):
    assert f"{key}: unknown key; did you mean '{nearest}'?" in refused(**{key: 1})


def test_key_of_another_section_is_told_where_it_belongs():
    assert "rounds: unknown key; did you mean federation.rounds?" in refused(rounds=3)
    assert "format: unknown key; did you mean task.format?" in refused(format={})


def test_every_refused_combination_is_an_error_of_its_own():
    message = refused(
        **{"federation.secure_aggregation": True, "federation.aggregation": "median", "client.ranks": [99]}
    )
    assert "4 errors" in message
    assert message.count("\n  ") == 4


def test_unknown_key_inside_an_optional_section_suggests_the_nearest():
    message = refused(task={"format": {"prompt": "{x}", "answer": "y", "chioces": ["a"]}})
    assert "task.format.chioces: unknown key; did you mean 'choices'?" in message


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("slm.heal.siz", "'size'"),
        ("server.pseudo_labels.feature", "'features'"),
        ("control.ridges", "'ridge'"),
        ("slm.heal.rounds", "federation.rounds"),
        ("slm.size", "llm.heal.size or slm.heal.size"),
        ("federation.epochs", "client.epochs or server.epochs"),  # and not those of healing
        ("server.features", "server.pseudo_labels.features or control.features"),
    ],
)
def test_keys_of_sections_that_are_null_are_suggested_too(key, hint):
    assert f"{key}: unknown key; did you mean {hint}?" in refused(**{key: 1})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x", "slm.layers: 'x' is not allowed: Input should be a valid integer"),
        ([], "slm.layers: [] is not allowed: List should have at least 1 item"),
        ([0, -1], "slm.layers.1: -1 is not allowed: Input should be greater than or equal to 0"),
    ],
)
def test_layers_that_are_neither_a_number_nor_indices_are_one_error(value, message):
    said = refused(**{"slm.layers": value})
    assert "1 error\n" in said
    assert message in said


def test_unknown_key_like_no_other_lists_the_valid_ones():
    assert "client.zzz: unknown key; valid keys here: epochs, batch_size" in refused(**{"client.zzz": 1})


def test_all_errors_are_reported_at_once():
    message = refused(**{"federation.round": 3, "client.epochs": 0, "slm.adapter.rank": "eight"})
    assert "3 errors" in message
    assert "federation.round: unknown key; did you mean 'rounds'?" in message
    assert "client.epochs: 0 is not allowed" in message
    assert "slm.adapter.rank: 'eight' is not allowed" in message
    assert len(message.splitlines()) == 4


def test_one_error_is_one_error():
    assert "configuration icd10: 1 error\n" in refused(seed=-1)


@pytest.mark.parametrize(
    "key",
    [
        "federation.rounds",
        "task.clients",
        "task.private_size",
        "task.test_size",
        "slm.adapter.rank",
        "llm.layers",
        "client.epochs",
        "client.batch_size",
        "client.learning_rate",
        "server.learning_rate",
        "server.distillation.temperature",
        "federation.fraction",
        "evaluation.every",
        "task.partition.alpha",
    ],
)
@pytest.mark.parametrize("value", [0, -1])
def test_zero_and_negative_numbers_are_refused(key, value):
    message = refused(**{key: value})
    assert f"{key}: {value} is not allowed: Input should be greater than" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("federation.rounds", "five"),
        ("federation.rounds", 2.5),
        ("federation.fraction", 1.5),
        ("client.learning_rate", float("nan")),
        ("client.learning_rate", float("inf")),
        ("server.distillation.weight", -0.5),
        ("server.distillation.weight", float("inf")),
        ("server.distillation.divergence", "js"),
        ("server.distillation.teach_where_better", "sometimes"),
        ("server.distillation.warmup_rounds", -1),
        ("server.layer_transfer", 1.5),
        ("server.layer_transfer", -0.5),
        ("client.proximal", -0.1),
        ("client.max_grad_norm", 0),
        ("server.max_grad_norm", -1),
        ("client.proximal", float("inf")),
        ("federation.server_optimizer.kind", "sgd"),
        ("federation.server_optimizer.learning_rate", 0),
        ("federation.server_optimizer.momentum", 1.0),
        ("federation.server_optimizer.decay", 1.0),
        ("federation.server_optimizer.tau", 0),
        ("slm.adapter.freeze_a", "b"),
        ("slm.adapter.dropout", 1.0),
        ("slm.adapter.targets", 3),
        ("slm.dtype", "int8"),
        ("federation.aggregation", "medoid"),
        ("federation.privacy", 1),
        ("task.partition.kind", "random"),
        ("client", 3),
        ("seed", None),
        ("name", ["a"]),
    ],
)
def test_value_of_a_wrong_type_or_range_is_named(key, value):
    message = refused(**{key: value})
    assert f"  {key}" in message
    assert f"{value!r} is not allowed" in message


@pytest.mark.parametrize(
    "overrides",
    [{"task.clients": 2}, {"federation.fraction": 0.5}, {"federation.participants": ["0", "1"]}],
    ids=["clients", "fraction", "participants"],
)
def test_secure_sum_of_two_clients_is_refused(overrides):
    message = refused(**{"federation.secure_aggregation.enabled": True, **overrides})
    assert "needs at least 3 clients in a round" in message


def test_secure_aggregation_of_three_clients_is_allowed():
    config = load_config(**{"federation.secure_aggregation.enabled": True, "task.clients": 3})
    assert config.federation.secure_aggregation


def test_distillation_without_public_data_is_refused():
    message = refused(task={"public_size": 0, "unlabelled_size": 0})
    assert "server.epochs 1 needs public data" in message
    assert "task.unlabelled_size is 0. Raise one of them, or set server.epochs: 0" in message
    assert load_config("icd10", task={"public_size": 0}, server={"epochs": 0}).task.public_size == 0
    assert load_config("icd10", task={"public_size": 0, "unlabelled_size": 1}).server.epochs == 1


BOTH_FREEZE = {"slm.adapter.freeze_a": True, "llm.adapter.freeze_a": True}


@pytest.mark.parametrize(
    "overrides",
    [
        {"slm.source": "another"},
        {"llm.layers": 20},
        {"slm.pretrain_epochs": 1},
        {"llm.pretrain_epochs": 1},
        {"slm.adapter.rank": 4},
        {"llm.adapter.targets": ["q_proj"]},
        {"slm.adapter.kind": "dora", "llm.adapter.kind": "dora"},
        BOTH_FREEZE,
    ],
    ids=str,
)
def test_layer_transfer_into_a_model_that_the_slm_was_not_cut_from_is_refused(overrides):
    message = refused(**{"server.layer_transfer": 0.5, **overrides})
    assert "server.layer_transfer 0.5 needs an SLM" in message
    assert "or server.layer_transfer: 0" in message
    assert load_config(**overrides).server.layer_transfer == 0


def test_layer_transfer_of_a_cut_slm_is_allowed():
    assert load_config("icd10", **{"server.layer_transfer": 1}).server.layer_transfer == 1.0
    both = {"slm.adapter.rank": 4, "llm.adapter.rank": 4, "slm.adapter.kind": "LORA", "llm.adapter.kind": "LORA"}
    assert load_config("icd10", **{"server.layer_transfer": 0.5, **both}).slm.adapter.rank == 4


def test_run_that_trains_nothing_is_refused():
    assert "trains nothing" in refused(federation={"participants": []}, server={"epochs": 0})


def test_public_part_at_a_client_needs_the_pooled_partition():
    assert "task.partition: " in refused(task={"partition": {"kind": "iid", "with_public": True}})
    assert load_config("icd10", task={"partition": {"kind": "pooled", "with_public": True}}).task.partition.with_public


def test_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 3


# --- combinations that are refused ---

NOISE = {"level": "example", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-4, "sampling_rate": 0.1}
PRIVATE = {"federation.privacy": NOISE, "federation.aggregation": "uniform"}


@pytest.mark.parametrize("upload", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("hidden", "why"),
    [
        (
            {"federation.secure_aggregation.enabled": True},
            "secure_aggregation: the server sees only a sum",
        ),
        (
            {"federation.secure_aggregation.simulate_quantization": True},
            "secure_aggregation.simulate_quantization: it simulates secure aggregation",
        ),
        (PRIVATE, "privacy: its noise is calibrated"),
    ],
)
def test_sixteen_bit_uploads_of_hidden_updates_are_refused(upload, hidden, why):
    message = refused(**hidden, **{"federation.upload": upload})
    assert f"federation.upload {upload} can't be combined with federation.{why}" in message
    assert "Set federation.upload: float32" in message


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"slm.adapter.start": "somewhere"}, "slm.adapter.start: null"),
        ({"federation.aggregation": "product"}, "federation.aggregation: mean"),
    ],
)
def test_differences_from_the_untrained_adapter_need_one_that_all_know(changes, remedy):
    message = refused(**changes, **{"federation.download": "int3"})
    assert "federation.download int3 sends how the adapter differs from the untrained one" in message
    assert f"Set federation.download: bfloat16, or {remedy}" in message


def test_unknown_upload_dtype_is_refused():
    assert "federation.upload: 'int2' is not allowed" in refused(**{"federation.upload": "int2"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"client.ranks": [4, 16]},
            "client.ranks [4, 16] exceed the rank of the whole adapter, slm.adapter.rank 8",
        ),
        ({"client.ranks": [4], "slm.adapter.kind": "dora"}, "client.ranks [4] needs a plain LoRA adapter"),
        (
            {"client.ranks": [4], "slm.adapter.options": {"use_dora": True}},
            "client.ranks [4] needs a plain LoRA adapter",
        ),
        ({"client.ranks": [4], "slm.adapter.freeze_a": True}, "client.ranks [4] needs clients to send both A and B"),
        (
            {"client.ranks": [4], "federation.secure_aggregation.enabled": True},
            "Set client.ranks: null",
        ),
        ({"client.ranks": [4]} | PRIVATE, "client.ranks [4] can't be combined with federation.privacy"),
        ({"client.ranks": []}, "client.ranks: [] is not allowed"),
        ({"client.ranks": [0]}, "client.ranks.0: 0 is not allowed"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(changes, message):
    assert message in refused(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"federation.secure_aggregation.enabled": True},
            "product can't be combined with federation.secure_aggregation",
        ),
        ({"federation.secure_aggregation.simulate_quantization": True}, "Set federation.aggregation: uniform"),
        ({"federation.privacy": NOISE}, "aggregation product weights clients by their numbers of examples"),
        ({"slm.adapter.kind": "ia3"}, "federation.aggregation product needs a plain LoRA adapter"),
        ({"slm.adapter.freeze_a": True}, "Set slm.adapter.freeze_a: false"),
        (
            {"federation.server_optimizer.kind": "fedadam"},
            "product can't be combined with federation.server_optimizer fedadam, learning_rate 1",
        ),
        (
            {"federation.server_optimizer.learning_rate": 0.5},
            "product can't be combined with federation.server_optimizer average, learning_rate 0.5",
        ),
        (
            {"server.layer_transfer": 1.0},
            "server.layer_transfer 1 can't be combined with federation.aggregation product",
        ),
    ],
)
def test_product_mean_where_it_means_nothing_is_refused(changes, message):
    assert message in refused(**{"federation.aggregation": "product"}, **changes)


def test_commented_configuration_keeps_every_text_on_one_line_as_people_write_it():
    text = "{所見}\n診療科: \t#" + "長い " * 500
    form = {"prompt": text, "answer": "診療科", "choices": ["内科\n", "眼科"], "delimiter": "\t"}
    config = load_config("icd10", task={"name": "custom", "path": "記録.csv", "format": form})
    printed = commented_yaml(config)
    assert 'choices: ["内科\\n", 眼科]' in printed
    assert len([line for line in printed.splitlines() if "診療科" in line]) == 2
    assert load_config(yaml.safe_load(printed)) == config
