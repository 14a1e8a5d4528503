import pytest
import torch
from tests.conftest import WORDS
from tests.modalities.text.tiny_architectures import VOCABULARY, build
from transformers import BloomConfig, LlamaConfig, MistralConfig, Qwen2Config

from fedcollm.errors import UserError
from fedcollm.modalities.text.architectures import BRANCHING, PADDED, check_causal, obeys_any_mask, tolerates_padding
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.task import TextTask

#: Types that are in no table: what padding would change, or hides.
ALONE = ("bart", "deepseek_v2", "recurrent_gemma", "rwkv", "xlstm")

#: Types with a window, tested once more with one that is as long as the context and so hides nothing.
WINDOWED = ("cohere2", "gemma2", "gemma3_text", "gpt_oss", "mistral", "mixtral", "olmo3", "phi3", "starcoder2")

LABELS = ("A", "B", "C")

EXAMPLES = [
    TextExample("1", "red", ("cat", "dog bird", "good bad is a the"), 2, LABELS),
    TextExample("2", " ".join(WORDS[2:14]), ("green blue", "animal", "colour is good"), 0, LABELS),
    TextExample("3", "the bird is a", ("bad", "red animal", "cat"), 1, LABELS),
]


def rows(model, task: TextTask, prompt: str, choice: str) -> torch.Tensor:
    """The logits of a choice's tokens, from the whole sequence alone."""
    start, answer = task.encode(prompt, choice)
    with torch.no_grad():
        logits = model(torch.tensor([start + answer[:-1]]), use_cache=False).logits[0]
    return logits[-len(answer) :, :VOCABULARY].float()


def check(kind: str, tokenizer, **changes):
    """Compare batches with one sequence at a time: supervised rows, and the log-likelihoods of all choices."""
    model, task = build(kind, **changes), TextTask("t", tokenizer, VOCABULARY, 64)
    with torch.no_grad():
        batch = task.collate(EXAMPLES)
        got = task.logits(model, batch)
        likelihoods = task.likelihoods(model, EXAMPLES)
    one_by_one = torch.cat([rows(model, task, e.prompt, e.choices[e.answer or 0]) for e in EXAMPLES])
    assert one_by_one.std() > 0.01  # the weights are large enough to tell logits apart
    torch.testing.assert_close(got, one_by_one, atol=1e-4, rtol=1e-4)
    for example, values in zip(EXAMPLES, likelihoods, strict=True):
        for choice, value in zip(example.choices, values, strict=True):
            answer = torch.tensor(task.encode(example.prompt, choice)[1])
            nats = rows(model, task, example.prompt, choice).log_softmax(-1).gather(1, answer[:, None]).sum()
            assert float(value) == pytest.approx(float(nats), abs=1e-4)
    return model


@pytest.mark.parametrize(
    ("shape", "obeys"),
    [
        (LlamaConfig(attn_implementation="sdpa"), True),
        (LlamaConfig(attn_implementation="eager"), True),
        (LlamaConfig(attn_implementation="flash_attention_2"), False),
        (MistralConfig(sliding_window=512), False),
        (Qwen2Config(sliding_window=512, use_sliding_window=False), True),
        (LlamaConfig(num_hidden_layers=2, layer_types=["full_attention", "linear_attention"]), False),
        (BloomConfig(), False),
    ],
)
def test_prompts_are_shared_only_where_attention_obeys_any_mask(shape, obeys):
    assert obeys_any_mask(shape) is obeys


@pytest.mark.parametrize("kind", sorted(BRANCHING))
def test_any_mask_gives_the_logits_of_each_sequence_alone(kind, tokenizer):
    model = check(kind, tokenizer)
    assert tolerates_padding(model.config)


@pytest.mark.parametrize("kind", WINDOWED)
def test_window_as_long_as_the_context_lets_choices_share_a_prompt(kind, tokenizer):
    model = check(kind, tokenizer, sliding_window=64)
    assert obeys_any_mask(model.config, 64)
    assert not obeys_any_mask(model.config, 65)


@pytest.mark.parametrize("kind", sorted(PADDED))
def test_mask_of_padding_gives_the_logits_of_each_sequence_alone(kind, tokenizer):
    model = check(kind, tokenizer)
    assert tolerates_padding(model.config)
    assert not obeys_any_mask(model.config, 4)


@pytest.mark.parametrize("kind", ALONE)
def test_other_architectures_read_one_sequence_at_a_time(kind, tokenizer):
    assert not tolerates_padding(check(kind, tokenizer).config)


def test_alibi_of_falcon_is_not_lost(tokenizer):
    check("falcon", tokenizer, alibi=True)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm"])
def test_model_that_reads_in_both_directions_is_refused(kind):
    switch = "causal" if kind == "xlm" else "is_decoder"
    with pytest.raises(UserError, match=f"'m': {kind} reads a text in both directions"):
        check_causal("m", build(kind, **{switch: False}).config)
    check_causal("m", build(kind, **{switch: True}).config)


@pytest.mark.parametrize("kind", ["gpt_neox", "bart", "llama"])
def test_causal_model_is_let_through_whatever_its_configuration_lacks(kind):
    check_causal("m", build(kind).config)
