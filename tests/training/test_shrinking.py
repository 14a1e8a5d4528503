"""Which layers and neurons a text shows to matter."""

import pytest
from tests.conftest import tiny_llama
from tests.training.test_healing import PIECES
from transformers import LlamaForCausalLM, OPTConfig, OPTForCausalLM

from fedcollm.config import choices
from fedcollm.errors import UserError
from fedcollm.modalities.text.task import TextTask
from fedcollm.models.pruning import gated_mlps
from fedcollm.training.healing import text_batches
from fedcollm.training.shrinking import LAYER_CHOICES, neurons


def task(tokenizer) -> TextTask:
    return TextTask("text", tokenizer, 16, 32)


def batches(tokenizer) -> list:
    return text_batches(task(tokenizer), PIECES, 4)


def idle(model: LlamaForCausalLM, layers: list[int]) -> LlamaForCausalLM:
    """Let some layers return their input as it is."""
    for index in layers:
        layer = model.model.layers[index]
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    return model


def test_even_layers_do_not_depend_on_the_text(tokenizer):
    assert LAYER_CHOICES["even"](task(tokenizer), tiny_llama(5), [], 3) == [0, 2, 4]
    assert LAYER_CHOICES["edges"](task(tokenizer), tiny_llama(5), [], 3) == [0, 3, 4]  # round(0.9) = 1 first layer
    assert LAYER_CHOICES["edges"](task(tokenizer), tiny_llama(9), [], 6) == [0, 1, 5, 6, 7, 8]  # round(1.8) = 2
    assert LAYER_CHOICES["edges"](task(tokenizer), tiny_llama(3), [], 3) == [0, 1, 2]


def test_a_block_of_layers_that_do_nothing_is_left_out(tokenizer):
    model = idle(tiny_llama(5), [2, 3])
    assert LAYER_CHOICES["block"](task(tokenizer), model, batches(tokenizer), 3) == [0, 1, 4]
    assert len(model.model.layers) == 5


def test_layers_that_do_nothing_have_no_influence_wherever_they_are(tokenizer):
    model = idle(tiny_llama(5), [1, 3])
    assert LAYER_CHOICES["influence"](task(tokenizer), model, batches(tokenizer), 3) == [0, 2, 4]


def test_neurons_whose_output_is_ignored_are_not_kept(tokenizer):
    model = tiny_llama(2)
    for mlp in gated_mlps(model):
        mlp.down_proj.weight.data[:, 8:24] = 0
    kept = neurons(task(tokenizer), model, batches(tokenizer), 0.5)
    assert [one.tolist() for one in kept] == [[*range(8), *range(24, 32)]] * 2


def test_a_neuron_that_is_never_active_is_not_kept(tokenizer):
    model = tiny_llama(1)
    mlp = gated_mlps(model)[0]
    mlp.up_proj.weight.data[:16] = 0
    assert neurons(task(tokenizer), model, batches(tokenizer), 0.5)[0].tolist() == list(range(16, 32))


def test_ranking_neurons_leaves_no_hook_behind(tokenizer):
    model = tiny_llama(1)
    neurons(task(tokenizer), model, batches(tokenizer), 0.5)
    assert not gated_mlps(model)[0].down_proj._forward_pre_hooks


def test_the_table_has_every_choice_of_the_configuration():
    assert choices.LAYER_CHOICES.keys() == LAYER_CHOICES.keys()


def test_influence_of_layers_whose_states_have_several_forms_is_refused(tokenizer):
    shape = OPTConfig(
        vocab_size=16, hidden_size=16, ffn_dim=32, num_hidden_layers=4, num_attention_heads=2,
        max_position_embeddings=32, word_embed_proj_dim=8,
    )  # fmt: skip
    model = OPTForCausalLM(shape).eval()
    with pytest.raises(UserError, match=r"layer_choice: influence .*OPTForCausalLM.*block, or even"):
        LAYER_CHOICES["influence"](task(tokenizer), model, batches(tokenizer), 2)
    assert len(LAYER_CHOICES["block"](task(tokenizer), model, batches(tokenizer), 2)) == 2
