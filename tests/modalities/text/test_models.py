"""Causal language models on tiny directories: where they come from, and what a pair has in common."""

from types import SimpleNamespace

import pytest
import torch
from tests.conftest import tiny_llama

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.models import TextModels, client_facts, pair_facts

CPU = torch.device("cpu")
MODELS = TextModels()


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))


# --- loading ---


def test_network_says_where_it_can_be_loaded_from(model_directories):
    section = ModelConfig(source=model_directories["slm"], dtype="bfloat16")
    network = MODELS.load_model(section, "slm", CPU, 0)
    assert network.name_or_path == section.source
    assert next(network.parameters()).dtype == torch.bfloat16


def test_network_of_fewer_layers_is_a_directory_of_its_own(model_directories, tmp_path):
    network = MODELS.load_model(ModelConfig(source=model_directories["llm"], layers=2), "slm", CPU, 0)
    assert network.config.num_hidden_layers == 2
    assert network.name_or_path.startswith(str(tmp_path / "cache"))
    whole = MODELS.load_model(ModelConfig(source=model_directories["llm"]), "llm", CPU, 0)
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(network.state_dict()[name.format(1)], whole.state_dict()[name.format(3)])


def test_loading_draws_no_random_numbers(model_directories):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    MODELS.load_model(ModelConfig(source=model_directories["slm"]), "slm", CPU, 7)
    assert torch.equal(torch.get_rng_state(), before)


# --- sizes without weights ---


def test_outline_has_shapes_and_no_storage(model_directories):
    network = MODELS.outline(ModelConfig(source=model_directories["llm"], layers=2))
    assert all(parameter.is_meta for parameter in network.parameters())
    loaded = MODELS.load_model(ModelConfig(source=model_directories["llm"], layers=2), "slm", CPU, 0)
    assert {name: p.shape for name, p in network.named_parameters()} == {
        name: p.shape for name, p in loaded.named_parameters()
    }


def test_outline_of_a_hub_id_needs_no_hub():
    assert MODELS.outline(ModelConfig(source="openai-community/gpt2")).num_parameters() == 124439808


def test_more_layers_than_there_are_is_refused(model_directories):
    with pytest.raises(UserError, match="layers"):
        MODELS.outline(ModelConfig(source=model_directories["llm"], layers=5))


@pytest.mark.parametrize(("layers", "kept"), [(None, [0, 1, 2, 3]), (2, [0, 3]), (1, [0])])
def test_layers_of_the_slm_in_its_llm(layers, kept):
    assert MODELS.slm_layers(ModelConfig(layers=layers), tiny_llama(4)) == kept


def test_footprint_by_hand():
    one = TextExample("a", "8 bytes.", ("ab", "5byte"), 0, ("A", "B"))  # 2 tokens; 1 and 2
    shape = SimpleNamespace(max_position_embeddings=1)
    assert MODELS.footprint(one, None) == (4, 2)
    assert MODELS.footprint(one, None, scoring=True) == (5, 2)
    assert MODELS.footprint(one, shape) == (3, 2)
    assert MODELS.footprint(None, None) == (64, 4)


# --- a pair ---


def test_pair_of_one_tokenizer_has_common_facts(model_directories):
    slm, llm = (ModelConfig(source=model_directories[role]) for role in ("slm", "llm"))
    facts = pair_facts(slm, llm, False)
    assert facts.slm is facts.llm
    assert (facts.slm.vocabulary_size, facts.slm.context_length, facts.slm.start) == (16, 32, ())


def test_pair_of_two_tokenizers_has_facts_of_each(pair_config):
    facts = pair_facts(pair_config.slm, pair_config.llm, True)
    assert (facts.slm.vocabulary_size, facts.llm.vocabulary_size) == (16, 24)
    assert (facts.slm.start, facts.llm.start) == ((), (1,))
    assert facts.slm.context_length == facts.llm.context_length == 32


def test_pair_of_two_tokenizers_must_be_allowed(pair_config):
    with pytest.raises(UserError, match="have different tokenizers"):
        pair_facts(pair_config.slm, pair_config.llm, False)


def test_client_is_told_what_depends_on_the_llm(model_directories):
    facts = client_facts(ModelConfig(source=model_directories["slm"]), 12, 20)
    assert (facts.vocabulary_size, facts.context_length, facts.start) == (12, 20, ())
