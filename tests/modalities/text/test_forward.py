import pytest
import torch
from tests.conftest import tiny_llama
from tests.parties import add_adapter

from fedcollm.modalities.text.forward import branch, logits_of, pad_left
from fedcollm.models.fused.attention import GROUPED, LONGEST
from fedcollm.models.fused.patch import fuse, unfused

SEQUENCES = [(3, 4, 5, 6, 7), (8, 9), (10, 11, 12)]
ROWS = torch.tensor([[False, True], [True, True], [False, True]])


def test_padding_by_hand():
    made = pad_left([(3, 4, 5), (6,)], 2)
    assert made["input_ids"].tolist() == [[3, 4, 5], [2, 2, 6]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert made["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_branches_by_hand():
    # prompt of two tokens, answers of two and three: columns pad, prompt, prompt, one, two, two
    inputs = {name: values[1:] for name, values in pad_left([(0,) * 6, (1, 2, 3, 5, 6)], 0).items()}
    seen, positions = branch(inputs, [((1, 2), [(3, 4), (5, 6, 7)])])
    assert positions.tolist() == [[0, 0, 1, 2, 2, 3]]
    assert seen[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 1, 0],
        [0, 1, 1, 0, 1, 1],
    ]


def adapted(fused: bool, attention: str = GROUPED):
    """A tiny Llama with an adapter that does something."""
    network = tiny_llama()
    network.set_attn_implementation(attention)
    model = add_adapter(network, seed=3, rank=4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.1)
    if fused:
        fuse(model)
    return model


def whole(model, sequence: tuple[int, ...]) -> torch.Tensor:
    return model(torch.tensor([sequence])).logits[0]


@pytest.mark.parametrize("attention", [GROUPED, "eager", "sdpa"])
@pytest.mark.parametrize("fused", [True, False])
def test_rows_are_those_of_each_sequence_alone(fused, attention):
    model, plain = adapted(fused, attention), adapted(False)
    rows = logits_of(model, pad_left(SEQUENCES, 0), ROWS)
    one, two, three = (whole(plain, sequence) for sequence in SEQUENCES)
    torch.testing.assert_close(rows, torch.stack([one[4], two[0], two[1], three[2]]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_columns_attend_to_what_they_are_told(fused):
    inputs = pad_left([(3, 4, 5), (6, 7)], 0)
    seen = torch.eye(3, dtype=torch.bool).expand(2, 3, 3).clone()
    seen[0, 2, 0] = True  # the second token of the first sequence is not seen by the third
    rows = logits_of(adapted(fused), inputs, torch.ones(2, 1, dtype=torch.bool), seen)
    network = adapted(False)
    pair = network(torch.tensor([[3, 5]]), position_ids=torch.tensor([[0, 2]])).logits[0, 1]
    alone = network(torch.tensor([[7]]), position_ids=torch.tensor([[1]])).logits[0, 0]
    torch.testing.assert_close(rows, torch.stack([pair, alone]), atol=1e-5, rtol=1e-5)


class Widths:
    """Columns that reach the model, and rows that reach its head."""

    def __init__(self, model):
        network, self.inputs, self.head = model.base_model.model, [], []
        network.model.embed_tokens.register_forward_pre_hook(lambda _, x: self.inputs.append(tuple(x[0].shape)))
        network.lm_head.register_forward_pre_hook(lambda _, x: self.head.append(tuple(x[0].shape[:2])))


def test_no_padding_and_no_row_too_many_where_the_model_can_do_without():
    model = adapted(True)
    seen = Widths(model)
    logits_of(model, pad_left(SEQUENCES, 0), ROWS)
    with unfused(model):
        logits_of(model, pad_left(SEQUENCES, 0), ROWS)
    # 10 tokens, and all 5 places of padding, as there are not 6 to the next multiple of 16
    assert seen.inputs == [(1, 15), (3, 5)]
    assert seen.head == [(1, 4), (3, 2)]


def test_padding_fills_up_to_a_multiple_of_16():
    model = adapted(True)
    seen = Widths(model)
    inputs = pad_left([tuple(range(3, 15)), *[(5, 6)] * 2], 0)  # 16 tokens in 3 x 12
    logits_of(model, inputs, torch.ones(3, 1, dtype=torch.bool))
    inputs = pad_left([tuple(range(3, 15)), *[(5, 6)] * 3], 0)  # 18 tokens in 4 x 12
    logits_of(model, inputs, torch.ones(4, 1, dtype=torch.bool))
    assert seen.inputs == [(1, 16), (1, 32)]


def test_models_that_must_have_padding():
    model = adapted(True)
    assert model.reads_packed(5)
    assert not model.reads_packed(LONGEST + 1)
    with model.disable_adapter():
        assert not model.reads_packed(5)
    with unfused(model):
        assert not model.reads_packed(5)
    model.base_model.model.set_attn_implementation("sdpa")
    assert not model.reads_packed(5)
    assert not hasattr(adapted(False), "reads_packed")
