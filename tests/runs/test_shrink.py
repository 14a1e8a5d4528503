"""Models that are cut and healed before a run: made once, found again, refused clearly."""

import copy
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.conftest import tiny_llama
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from fedcollm.config import ModelConfig
from fedcollm.config.baselines import changed
from fedcollm.errors import UserError
from fedcollm.modalities.text.task import TextTask
from fedcollm.models.pretrained import load_causal_lm, load_config, load_tokenizer, start_tokens
from fedcollm.runs import shrink
from fedcollm.runs.build import Inputs, build_federation
from fedcollm.runs.directory import read_json
from fedcollm.runs.runner import evaluate_run, restore, rounds
from fedcollm.runs.shrink import ShrinkReport, shrink_report, shrunk, with_shrunk_models
from fedcollm.training.healing import Fit

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text(healing_text) -> str:
    return str(healing_text)


@pytest.fixture
def section(model_directories, text) -> ModelConfig:
    heal = {"text": text, "size": 96, "batch_size": 16, "learning_rate": 1e-2}
    return ModelConfig(source=model_directories["llm"], layers=2, heal=heal)


def test_a_section_without_healing_stays_as_it_is(model_directories):
    plain = ModelConfig(source=model_directories["llm"], layers=2)
    assert shrunk(plain, CPU) is plain


def test_the_healed_model_is_a_directory_with_its_layers_and_a_report(section):
    made = shrunk(section, CPU)
    assert (made.layers, made.heal) == (None, None)
    assert load_config(made.source).num_hidden_layers == 2
    assert load_config(made.source).kept_layers == [0, 3]
    report = shrink_report(Path(made.source))
    assert report.layers == [0, 3]
    assert report.neurons is None
    assert report.parameters["cut"] < report.parameters["whole"]
    assert report.text_rows == 96 * 2
    assert report.healed.kl < report.cut.kl
    assert report.whole.kl is None
    assert ShrinkReport.from_json(report.to_json()) == report


def test_it_is_made_once(section, monkeypatch):
    made = shrunk(section, CPU)
    monkeypatch.setattr(shrink, "heal", None)
    assert shrunk(section, CPU) == made


@pytest.mark.parametrize(
    "change", [{"layers": 3}, {"heal": {"size": 64}}, {"heal": {"objective": "next_token"}}, {"layer_choice": "block"}]
)
def test_other_settings_make_another_model(section, change):
    heal = section.heal.model_dump() | change.pop("heal", {})
    other = ModelConfig.model_validate(section.model_dump() | change | {"heal": heal})
    assert shrunk(other, CPU).source != shrunk(section, CPU).source


def test_another_text_makes_another_model(section, text):
    first = shrunk(section, CPU).source
    Path(text).write_text(Path(text).read_text(encoding="utf-8").replace("red", "good"), encoding="utf-8")
    assert shrunk(section, CPU).source != first


def test_two_caches_hold_the_same_bits(section, tmp_path, monkeypatch):
    one = (Path(shrunk(section, CPU).source) / "model.safetensors").read_bytes()
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "other"))
    assert (Path(shrunk(section, CPU).source) / "model.safetensors").read_bytes() == one


def test_an_interrupted_healing_continues_and_leaves_nothing_behind(section, cache, monkeypatch):
    expected = (Path(shrunk(section, CPU).source) / "model.safetensors").read_bytes()
    long = ModelConfig.model_validate(section.model_dump() | {"heal": section.heal.model_dump() | {"epochs": 4}})
    real = shrink.save_report

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(shrink, "save_report", interrupted)  # 24 steps, saved after 20
    with pytest.raises(KeyboardInterrupt):
        shrunk(long, CPU)
    assert len(list(cache.glob(".unfinished-*/state.safetensors"))) == 1
    monkeypatch.setattr(shrink, "save_report", real)
    assert (Path(shrunk(long, CPU).source) / "model.safetensors").read_bytes() != expected
    assert not list(cache.glob(".unfinished-*"))


def test_two_that_need_the_same_model_at_once_make_it_once(section, monkeypatch):
    calls, real = [], shrink.heal
    monkeypatch.setattr(shrink, "heal", lambda *arguments: calls.append(1) or real(*arguments))
    with ThreadPoolExecutor(2) as pool:  # a file's lock excludes threads like processes
        one, other = pool.map(lambda _: shrunk(section, CPU), range(2))
    assert one == other
    assert calls == [1]


def test_cache_that_cannot_be_written_is_named(section, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cache of models, .*file/cache, can't be written.*FEDCOLLM_CACHE"):
        shrunk(section, CPU)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"whole": 1}'])
def test_a_damaged_report_is_named_with_what_to_do(tmp_path, content):
    if content is not None:
        (tmp_path / "shrink.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"shrink.json can't be read .*Delete {tmp_path}"):
        shrink_report(tmp_path)


@pytest.mark.parametrize("moved", [False, True], ids=["in the cache", "elsewhere"])
def test_a_healed_model_can_be_shrunk_again(section, tmp_path, moved):
    first = shrunk(section.model_copy(update={"layers": 3}), CPU).source
    if moved:
        first = shutil.copytree(first, tmp_path / "moved")
    again = shrunk(section.model_copy(update={"source": str(first)}), CPU).source
    assert Path(again).name.startswith(("llm-", "moved-"))
    assert load_config(again).num_hidden_layers == 2
    assert load_config(again).kept_layers == [0, 2]  # of the three
    assert shrunk(section.model_copy(update={"source": str(first)}), CPU).source == again


def test_a_tokenizer_that_begins_every_text_is_kept(section, pieces, tmp_path):
    source = tmp_path / "with-start"
    tiny_llama(4, 32, seed=4, size=24).save_pretrained(source)
    pieces.save_pretrained(source)
    made = shrunk(section.model_copy(update={"source": str(source)}), CPU)
    assert start_tokens(load_tokenizer(made.source)) == (1,)
    assert shrink_report(Path(made.source)).healed.kl < shrink_report(Path(made.source)).cut.kl


def test_a_tokenizer_without_special_tokens_is_enough(section, tokenizer, tmp_path):
    source, bare = tmp_path / "bare", copy.deepcopy(tokenizer)
    shutil.copytree(section.source, source)
    bare.pad_token = bare.unk_token = None
    bare.save_pretrained(source)
    made = shrunk(section.model_copy(update={"source": str(source)}), CPU)
    assert load_tokenizer(made.source).pad_token_id is None
    assert shrink_report(Path(made.source)).healed.kl < shrink_report(Path(made.source)).cut.kl


@pytest.mark.parametrize("by_index", [False, True])
def test_a_model_without_our_attention_is_healed(section, tokenizer, tmp_path, by_index):
    shape = GPT2Config(vocab_size=16, n_embd=16, n_head=2, n_layer=4, n_positions=32, initializer_range=0.2)
    shape.bos_token_id = shape.eos_token_id = 1
    shape.scale_attn_by_inverse_layer_idx = by_index
    source = str(tmp_path / "gpt2")
    torch.manual_seed(0)
    GPT2LMHeadModel(shape).save_pretrained(source)
    tokenizer.save_pretrained(source)
    report = shrink_report(Path(shrunk(section.model_copy(update={"source": source}), CPU).source))
    assert report.layers == [0, 3]
    assert report.healed.kl < report.cut.kl


def test_a_model_that_is_another_one_once_it_is_loaded_is_refused(section, monkeypatch, cache):
    real = LlamaForCausalLM.save_pretrained

    def spoiled(self, place):
        copied = copy.deepcopy(self)
        copied.model.norm.weight.data.neg_()
        real(copied, place)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", spoiled)
    with pytest.raises(UserError, match=r"can't be shrunk: once .* loaded again.*KL per token"):
        shrunk(section, CPU)
    assert not list(cache.glob("llm-*"))


def test_a_model_can_be_cut_by_measurement_without_training(section):
    settings = section.model_dump() | {"layer_choice": "influence"}
    settings["heal"]["epochs"] = 0
    report = shrink_report(Path(shrunk(ModelConfig.model_validate(settings), CPU).source))
    assert len(report.layers) == 2
    assert report.healed == report.cut


def test_fewer_neurons(section):
    narrow = ModelConfig.model_validate(section.model_dump() | {"mlp_share": 0.5})
    made = shrunk(narrow, CPU)
    assert load_config(made.source).intermediate_size == 32
    assert shrink_report(Path(made.source)).neurons == 32
    assert load_causal_lm(made.source, torch.float32).model.layers[1].mlp.down_proj.weight.shape == (32, 32)


def test_a_text_that_is_too_short_is_the_users_error(section):
    more = ModelConfig.model_validate(section.model_dump() | {"heal": section.heal.model_dump() | {"size": 500}})
    with pytest.raises(UserError, match=r"^heal.text.* 216 pieces .*heal.size 500 needs 596.*Lower heal.size to 120 "):
        shrunk(more, CPU)


def test_a_text_of_few_long_lines_can_be_cut_into_more_pieces(section, text):
    words = Path(text).read_text(encoding="utf-8").split()  # 648
    Path(text).write_text(" ".join(words), encoding="utf-8")
    with pytest.raises(UserError, match=r"has 21 pieces .*at least 97 are needed.*heal\.words") as error:
        shrunk(section, CPU)
    assert "heal.size" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "key"), [({"heal": {"size": 500}}, r"llm\.heal\.size to 120"), ({"layers": 9}, r"llm\.layers: 9 of a")]
)
def test_messages_of_a_run_name_the_section(tiny_config, section, settings, key, tmp_path):
    heal = section.heal.model_dump() | settings.pop("heal", {})
    config = changed(tiny_config, {"llm": section.model_dump() | settings | {"heal": heal}})
    with pytest.raises(UserError, match=key):
        build_federation(config, tmp_path)


@pytest.mark.parametrize("role", ["slm", "llm"])
def test_messages_about_layers_that_are_only_cut_name_the_section(tiny_config, role, tmp_path):
    with pytest.raises(UserError, match=rf"^{role}\.layers: 9 of a model"):
        build_federation(changed(tiny_config, {f"{role}.layers": 9}), tmp_path)


# --- nothing is cut ---


@pytest.mark.parametrize(
    "kept", [{"layers": None}, {"layers": 4}, {"layers": [0, 1, 2, 3]}, {"layers": None, "mlp_share": 0.95}], ids=str
)
def test_a_model_from_which_nothing_is_cut_is_not_healed(section, kept, monkeypatch):
    monkeypatch.setattr(shrink, "heal", lambda *_: pytest.fail("it was healed"))  # 0.95 of 64 neurons are rounded up
    with pytest.raises(UserError, match=r"nothing is cut .*nothing to heal.*heal: null.*layers"):
        shrunk(section.model_copy(update=kept), CPU)


def test_a_whole_model_may_learn_to_predict_a_text(section):
    heal = section.heal.model_copy(update={"objective": "next_token"})
    report = shrink_report(Path(shrunk(section.model_copy(update={"layers": None, "heal": heal}), CPU).source))
    assert report.layers == [0, 1, 2, 3]
    assert report.healed.perplexity < report.cut.perplexity


def fit_of(section: ModelConfig, cut: float, healed: float) -> str:
    sizes = {"whole": 2, "cut": 1}
    return shrink._outcome(section, ShrinkReport([0], None, sizes, 1, Fit(2.0), Fit(3.0, cut), Fit(3.0, healed)))


def test_healing_that_did_harm_is_said_plainly(section):
    assert fit_of(section, 0.5, 0.25) == "healed: KL per token 0.50 -> 0.25 nats"
    assert fit_of(section, 0.25, 0.5).startswith("healing did harm: KL per token 0.25 -> 0.50 nats")
    text = section.model_copy(update={"heal": section.heal.model_copy(update={"objective": "next_token"})})
    assert "harm" not in fit_of(text, 0.25, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_choice": "block", "layers": 2}, "layer_choice block is measured on text"),
        ({"mlp_share": 0.5}, "mlp_share 0.5 is measured on text"),
        ({"layer_choice": "block", "heal": {}}, "layer_choice block needs layers"),
        ({"layer_choice": "best"}, "choose one of even, edges, block, influence"),
    ],
)
def test_measured_choices_need_a_text(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**change)


def test_a_run_uses_the_healed_model_and_keeps_its_configuration(tiny_config, section, tmp_path):
    config = changed(tiny_config, {"slm": section.model_dump()})
    federation = build_federation(config, tmp_path / "base")
    place = with_shrunk_models(config).slm.source
    assert federation.server.pair.slm.name_or_path == place
    assert config.slm.heal == section.heal


def test_layers_are_transferred_from_where_the_healed_model_has_them(tiny_config, section, tmp_path):
    by_block = section.model_dump() | {"layers": [0, 1]}
    config = changed(tiny_config, {"slm": by_block, "llm.source": section.source, "server.layer_transfer": 1.0})
    assert list(build_federation(config, tmp_path / "base").server.slm_layers) == [0, 1]


def test_a_healed_model_of_both_roles_gives_every_layer_to_itself(tiny_config, section, tmp_path):
    made = shrunk(section.model_copy(update={"layers": [1, 3]}), CPU).source
    both = {"slm.source": made, "llm.source": made, "server.layer_transfer": 1.0}
    assert list(build_federation(changed(tiny_config, both), tmp_path).server.slm_layers) == [0, 1]


def test_an_llm_that_nothing_uses_is_not_healed(tiny_config, section):
    heal = section.heal.model_dump() | {"objective": "next_token"}
    config = changed(tiny_config, {"llm": section.model_dump() | {"layers": None, "heal": heal}})
    assert with_shrunk_models(changed(config, {"server.epochs": 0})).llm == config.llm
    assert with_shrunk_models(config).llm.heal is None


@pytest.mark.parametrize("change", [{"llm.heal": {}}, {"slm.heal": {}, "slm.mlp_share": 0.5}])
def test_layers_are_transferred_only_if_they_are_those_of_the_llm(tiny_config, section, change):
    pair = {"slm.source": section.source, "slm.layers": 2, "server.layer_transfer": 1.0}
    assert changed(tiny_config, pair).server.layer_transfer == 1.0
    with pytest.raises(ValueError, match="layer_transfer"):
        changed(tiny_config, pair | change)


def test_scores_before_training_are_not_shared_with_a_base_of_another_text(tiny_config, section, text, tmp_path):
    config = changed(tiny_config, {"slm": section.model_dump(), "federation.rounds": 1})
    inputs = Inputs(shared=tmp_path / "shared")
    list(rounds(config, tmp_path / "one", inputs))
    entries = len(list((tmp_path / "shared" / "round-0").glob("*.json")))
    Path(text).write_text(Path(text).read_text(encoding="utf-8").replace("red", "good"), encoding="utf-8")
    list(rounds(config, tmp_path / "two", inputs))
    assert len(list((tmp_path / "shared" / "round-0").glob("*.json"))) > entries


def change(text: str) -> None:
    """Replace a word of the text, so that another base would be made of it."""
    Path(text).write_text(Path(text).read_text(encoding="utf-8").replace("red", "good"), encoding="utf-8")


def test_a_run_is_not_continued_on_a_base_of_another_text(tiny_config, section, text, tmp_path, monkeypatch):
    config = changed(tiny_config, {"slm": section.model_dump()})
    begun = rounds(config, tmp_path / "run")
    next(begun)
    begun.close()
    before = Path(text).read_text(encoding="utf-8")
    change(text)
    with monkeypatch.context() as patch:
        patch.setattr(shrink, "heal", lambda *_: pytest.fail("the other base was healed"))
        with pytest.raises(UserError, match=r"slm\.heal.* began with the base llm-.*the text"):
            list(rounds(None, tmp_path / "run", resume=True))
    Path(text).write_text(before, encoding="utf-8")
    assert [record.round for record in rounds(None, tmp_path / "run", resume=True)] == [0, 1, 2]


@pytest.mark.parametrize("spoil", [change, os.remove], ids=["changed", "removed"])
def test_a_finished_run_is_scored_on_the_base_that_it_had(tiny_config, section, text, tmp_path, spoil):
    config = changed(tiny_config, {"slm": section.model_dump(), "federation.rounds": 1})
    last = list(rounds(config, tmp_path / "run"))[-1]
    spoil(text)
    slm = restore(tmp_path / "run", "slm")[1].server.pair.slm
    assert Path(slm.name_or_path).name == read_json(tmp_path / "run", "environment.json")["healed"]["slm"]
    assert evaluate_run(tmp_path / "run", "slm").value == last.scores["slm"]


def test_a_run_is_not_scored_on_a_base_of_another_text(tiny_config, section, text, tmp_path, cache):
    config = changed(tiny_config, {"slm": section.model_dump(), "federation.rounds": 1})
    list(rounds(config, tmp_path / "run"))
    shutil.rmtree(next(cache.glob("llm-*-healed-*")))
    assert evaluate_run(tmp_path / "run", "slm").count == 48  # the same base is made again
    shutil.rmtree(next(cache.glob("llm-*-healed-*")))
    change(text)
    with pytest.raises(UserError, match=r"slm\.heal.* began with the base llm-.*the text"):
        evaluate_run(tmp_path / "run", "slm")


def test_only_language_models_are_healed(tmp_path):
    from fedcollm.config.loading import load_config as load

    config = load("digits", **{"slm.heal": {}, "task.private_size": 20, "task.public_size": 40})
    with pytest.raises(UserError, match=r"slm.heal.*digits"):
        build_federation(config, tmp_path)


def test_networks_of_a_modality_of_ones_own_are_not_healed(tiny_config, tmp_path):
    class Own(TextTask):
        causal_lm = False

    config = changed(tiny_config, {"slm.heal": {}})
    with pytest.raises(UserError, match=r"slm.heal.*no language models"):
        build_federation(config, tmp_path, Inputs(modality=Own("own", load_tokenizer(config.slm.source), 16, 32)))
