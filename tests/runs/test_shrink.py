"""Models that are cut and healed before a run: made once, found again, refused clearly."""

from pathlib import Path

import pytest
import torch
from tests.conftest import WORDS

from fedcollm.config import ModelConfig
from fedcollm.config.methods import changed
from fedcollm.errors import UserError
from fedcollm.models.pretrained import load_causal_lm, load_config
from fedcollm.runs import shrink
from fedcollm.runs.build import build_federation
from fedcollm.runs.shrink import ShrinkReport, shrink_report, shrunk, with_shrunk_models

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path) -> str:
    """216 distinct texts of three words."""
    path = tmp_path / "text.txt"
    words = WORDS[2:8]
    path.write_text("\n".join(f"{a} {b} {c}" for a in words for b in words for c in words), encoding="utf-8")
    return str(path)


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


def test_fewer_neurons(section):
    narrow = ModelConfig.model_validate(section.model_dump() | {"mlp_share": 0.5})
    made = shrunk(narrow, CPU)
    assert load_config(made.source).intermediate_size == 32
    assert shrink_report(Path(made.source)).neurons == 32
    assert load_causal_lm(made.source, torch.float32).model.layers[1].mlp.down_proj.weight.shape == (32, 32)


def test_a_text_that_is_too_short_is_the_users_error(section):
    more = ModelConfig.model_validate(section.model_dump() | {"heal": section.heal.model_dump() | {"size": 500}})
    with pytest.raises(UserError, match=r"heal.text.* 216 pieces .*heal.size 500 needs 596"):
        shrunk(more, CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_choice": "block", "layers": 2}, "layer_choice block is measured on text"),
        ({"mlp_share": 0.5}, "mlp_share 0.5 is measured on text"),
        ({"layer_choice": "block", "heal": {}}, "layer_choice block needs layers"),
        ({"layer_choice": "best"}, "choose one of even, block, influence"),
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


def test_only_language_models_are_healed(tmp_path):
    from fedcollm.config.loading import load_config as load

    config = load("digits", **{"slm.heal": {}, "task.private_size": 20, "task.public_size": 40})
    with pytest.raises(UserError, match=r"slm.heal.*digits"):
        build_federation(config, tmp_path)
