"""What costs time, counted: passes, positions that reach the head, padding. Counts don't depend on the machine."""

import random

import pytest
import torch
from tests.conftest import tiny_llama
from tests.parties import add_adapter, distil, fit
from torch import nn

from fedcollm.modalities.text.task import TextExample, TextTask
from fedcollm.models.fused.attention import GROUPED
from fedcollm.models.fused.patch import fuse
from fedcollm.training.batches import minibatches
from fedcollm.training.fine_tuning import evaluate

FILLERS = ("the", "a", "is", "good", "bad", "red", "green", "blue")


@pytest.fixture
def task(tokenizer) -> TextTask:
    return TextTask("toy", tokenizer, vocabulary_size=16, context_length=32)


def examples(count: int) -> list[TextExample]:
    """Prompts of 2 to 9 words in turn, two choices of one word and one of two."""
    prompts = [" ".join([*FILLERS[: 1 + i % 8], "cat"]) for i in range(count)]
    return [TextExample(f"{i}", p, ("dog", "bird", "the cat"), i % 2, ("A", "B", "C")) for i, p in enumerate(prompts)]


class Calls:
    """Shapes that reach a model's embedding [1, T] and its head [1, P, H]; and backward passes."""

    def __init__(self, model: nn.Module):
        network = model.base_model.model
        self.inputs, self.head, self.backward = [], [], []
        network.model.embed_tokens.register_forward_pre_hook(lambda _, x: self.inputs.append(tuple(x[0].shape)))
        network.lm_head.register_forward_pre_hook(lambda _, x: self.head.append(tuple(x[0].shape[:2])))
        network.lm_head.register_full_backward_hook(lambda *_: self.backward.append(1))


def fused(layers: int) -> nn.Module:
    network = tiny_llama(layers)
    network.set_attn_implementation(GROUPED)
    model = add_adapter(network, seed=1, rank=2)
    fuse(model)
    return model


def test_fine_tuning_passes_once_a_batch_and_reads_one_row_an_answer_token(task):
    model = fused(2)
    calls = Calls(model)
    fit(task, model, examples(40), epochs=1, batch_size=16, learning_rate=1e-3, seed=0)
    assert len(calls.inputs) == len(calls.backward) == 3
    assert sorted(calls.head) == [(1, 8), (1, 16), (1, 16)]


def test_distillation_makes_one_pass_of_each_model_a_batch(task):
    slm, llm = fused(2), fused(3)
    both = Calls(slm), Calls(llm)
    distil(task, slm, llm, examples(40), epochs=2, batch_size=16, learning_rate=1e-3, seed=0)
    for calls in both:
        assert len(calls.inputs) == len(calls.backward) == 6
        assert sum(batch * rows for batch, rows in calls.head) == 80
    assert both[0].inputs == both[1].inputs


def test_scoring_reads_each_prompt_once(task):
    model = fused(2)
    calls = Calls(model)
    evaluate(task, model, examples(32), batch_size=16)
    # sorted: 4 prompts each of 2 to 5 words, then of 6 to 9, and the first word of the third choice: 72 and 136 tokens,
    # filled up to multiples of 16; the head sees the prompt's last token and that one
    assert calls.inputs == [(1, 80), (1, 144)]
    assert calls.head == [(1, 32), (1, 32)]


def test_choices_of_an_item_are_tokenized_by_one_call(tokenizer):
    texts = []

    class Recording:
        pad_token_id = tokenizer.pad_token_id

        def __call__(self, some: list[str], add_special_tokens: bool):
            texts.append(some)
            return tokenizer(some, add_special_tokens=add_special_tokens)

    task, one = TextTask("toy", Recording(), 16, 32), examples(1)
    task.score(fused(1), one)
    assert texts == [["the cat", "the cat dog", "the cat bird", "the cat the cat"]]
    task.score(fused(1), one)
    assert len(texts) == 1


def test_padding_of_batches_of_like_size(task):
    some = examples(128)
    batches = list(minibatches(task, some, 16, random.Random(0)))
    widths = [batch.inputs["input_ids"].numel() for batch in batches]
    real = sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)
    assert real == 16 * (2 + 3 + 4 + 5 + 6 + 7 + 8 + 9)
    assert sum(widths) == real  # 16 of each length in a window of 128: none is padded


def test_rows_are_widened_to_float32_in_parts(task, monkeypatch):
    model, widened = fused(2).bfloat16(), []
    original = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda x: widened.append(tuple(x.shape)) or original(x))
    evaluate(task, model, examples(64), batch_size=64)
    assert max(shape[0] for shape in widened if len(shape) == 2 and shape[1] == 16) == 64  # of 64 x 2 rows
