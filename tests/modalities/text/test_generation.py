"""Generated tokens beside those of transformers, and of the whole sequence read anew for each token."""

import pytest
import torch
from tests.conftest import tiny_llama
from tests.modalities.text.tiny_architectures import VOCABULARY, build
from tests.parties import add_adapter
from transformers import GenerationConfig

from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.generation import generate
from fedcollm.modalities.text.style import Style
from fedcollm.modalities.text.task import TextTask
from fedcollm.models.fused.attention import GROUPED
from fedcollm.models.fused.patch import fuse

PROMPTS = [(2, 3, 4, 5, 6, 7, 8), (9,), (10, 11, 12), (5, 14, 3, 2, 9)]


def one_by_one(model, prompt: tuple[int, ...], limit: int, stops: set[int], columns: int) -> tuple[int, ...]:
    """The likeliest next tokens, each from the whole sequence without a cache."""
    tokens = list(prompt)
    for _ in range(limit):
        likeliest = int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1, :columns].argmax())
        if likeliest in stops:
            break
        tokens.append(likeliest)
    return tuple(tokens[len(prompt) :])


# Attention, a window, learned positions; ALiBi, states, linear attention; no usable cache, no tolerance of padding.
@pytest.mark.parametrize(
    "kind", ["llama", "gemma3_text", "gpt2", "bloom", "falcon_mamba", "qwen3_next", "bamba", "moshi", "rwkv", "xlstm"]
)
def test_batch_generates_what_each_prompt_does_alone(kind):
    model, limits = build(kind), [6, 3, 6, 1]
    with torch.inference_mode():
        stops = {one_by_one(model, PROMPTS[0], 3, set(), VOCABULARY)[2]}
        made = generate(model, PROMPTS, limits, stops, VOCABULARY)
        alone = [one_by_one(model, p, n, stops, VOCABULARY) for p, n in zip(PROMPTS, limits, strict=True)]
    assert made == alone
    assert len(made[0]) < 3


def adapted(fused: bool, attention: str):
    network = tiny_llama()
    network.set_attn_implementation(attention)
    model = add_adapter(network, seed=3, rank=4)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    if fused:
        fuse(model)
    return model.eval()


def test_fused_model_generates_what_transformers_and_peft_do():
    plain, fused = adapted(False, "eager"), adapted(True, GROUPED)
    settings = GenerationConfig(do_sample=False, max_new_tokens=12, pad_token_id=0, eos_token_id=4)
    with torch.inference_mode():
        whole = [plain.generate(input_ids=torch.tensor([p]), generation_config=settings)[0] for p in PROMPTS]
        made = generate(fused, PROMPTS, [12] * 4, {4}, 16)
    rest = [row[len(p) :].tolist() for row, p in zip(whole, PROMPTS, strict=True)]
    assert made == [tuple(t for t in row if t != 4) for row in rest]
    assert len(set(made)) > 1


def test_penalties_of_the_model_do_not_count_and_stay(llama):
    before = generate(llama, PROMPTS, [8] * 4, (), 16)
    llama.generation_config = GenerationConfig(repetition_penalty=50.0, do_sample=True, temperature=9.0)
    assert generate(llama, PROMPTS, [8] * 4, (), 16) == before
    assert llama.generation_config.repetition_penalty == 50.0


def test_tokens_that_only_one_model_knows_are_not_generated(llama):
    made = generate(llama, PROMPTS, [8] * 4, (), 5)
    assert max(token for tokens in made for token in tokens) < 5
    assert made == [one_by_one(llama, prompt, 8, set(), 5) for prompt in PROMPTS]


def test_answer_ends_where_the_context_is_full(tokenizer, llama):
    task = TextTask("t", tokenizer, 16, 8, style=Style(max_new_tokens=5))
    short, long = (TextExample(text, text, ("a",), 0, ("a",)) for text in ("red cat", "red cat is the good dog"))
    with torch.inference_mode():
        made = task.generated(llama, [short, long])
    assert [len(text.split()) for text in made] == [5, 4]  # 2 + 5 tokens, and 5 + 4, of which the last is no input
    assert task.generated(llama, [long]) == made[1:]
    assert task.notes()[0] == (
        "1 prompts lost their oldest tokens when they were asked, to leave room for 5 new tokens "
        "(task.format.max_new_tokens), or for half of the context"
    )


def test_length_of_the_right_answer_does_not_leak(tokenizer, llama):
    task = TextTask("t", tokenizer, 16, 8, style=Style(max_new_tokens=5))
    prompt = "red cat is the good dog red cat is the good dog"
    answers = [TextExample(answer, prompt, (answer,), 0, (answer,)) for answer in ("a", "a red cat is a dog")]
    with torch.inference_mode():
        one, other = task.generated(llama, answers)
    assert one == other
    assert len(one.split()) == 4


def test_what_moved_from_the_prompt_is_no_part_of_the_answer(tokenizer, llama, monkeypatch):
    monkeypatch.setattr("fedcollm.modalities.text.task.generate", lambda *_: [(11, 5)])  # ": cat"
    task = TextTask("t", tokenizer, 16, 32, style=Style(joiner=" : "))
    assert task.generated(llama, [TextExample("1", "red", ("cat",), 0, ("cat",))]) == ["cat"]
