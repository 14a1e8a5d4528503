"""Batches of conversations, decoded with supervised tokens in brackets, beside what transformers makes of them."""

import pytest
from tests.modalities.text.byte_pairs import byte_level

from fedcollm.errors import UserError
from fedcollm.modalities.base import UNLABELLED
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.style import Style
from fedcollm.modalities.text.task import TextTask
from fedcollm.models.pretrained import load_tokenizer

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|end|>")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
STRIPS = CHATML.replace("m.content", "m.content | trim")
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content.strip() }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content.strip() }} </s>"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "<s>{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}</s>{% endif %}"
)
THINK = "<think>\n\n</think>\n\n"
#: As Qwen3, which keeps the empty block before the last answer; in the other one only the generation prompt has it.
QWEN_3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
BLOCK_BEFORE_ANSWER = QWEN_3.replace("assistant\n<think>\n\n</think>\n\n", "assistant\n")
BLOCK_IN_GENERATION = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n\n</think>\n\n{% endif")
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def task(template: str | None, context: int = 512, **style) -> TextTask:
    tokenizer = byte_level("yes", special=SPECIAL, eos="</s>", template=template)
    return TextTask("t", tokenizer, len(tokenizer), context, style=Style(chat=True, **style))


def free(answer: str, *turns: tuple[str, str]) -> TextExample:
    return TextExample("1", "", (answer,), 0, (answer,), turns=turns)


def marked(task: TextTask, example: TextExample) -> str:
    """What a model reads, with what it learns in brackets."""
    batch, decode = task.collate([example]), task.tokenizer.decode
    answer = batch.targets.tolist()
    tokens = [*batch.inputs["input_ids"][0].tolist(), answer[-1]]
    assert tokens[-len(answer) :] == answer
    assert batch.rows[0].tolist()[-len(answer) :] == [True] * len(answer)
    return f"{decode(tokens[: -len(answer)])}[{decode(answer)}]"


def by_transformers(task: TextTask, example: TextExample) -> str:
    turns = [*example.turns, ("assistant", example.choices[0])]
    messages = [{"role": role, "content": content} for role, content in turns]
    return task.tokenizer.apply_chat_template(messages, tokenize=False)


HI = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "expected", "left"),
    [
        (CHATML, HI + "[ yes <|im_end|>]", "\n"),
        (DEFAULT_SYSTEM, "<|im_start|>system\nBe kind.<|im_end|>\n" + HI + "[ yes <|im_end|>]", "\n"),
        (STRIPS, HI + "[yes<|im_end|>]", "\n"),
        (LLAMA_2, "<s>[INST] hi [/INST] [yes </s>]", ""),
        (GEMMA, "<s><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n[yes<end_of_turn>]", "\n"),
        (PHI_3, "<|user|>\nhi<|end|>\n<|assistant|>\n[ yes <|end|>]", "\n</s>"),
        (QWEN_3, HI + THINK + "[ yes <|im_end|>]", "\n"),
        (BLOCK_BEFORE_ANSWER, HI + THINK + "[ yes <|im_end|>]", "\n"),
    ],
    ids=["chatml", "default system", "strips", "llama 2", "gemma", "phi 3", "qwen 3", "block before answer"],
)
def test_batch_is_the_template_of_transformers(template, expected, left):
    one, example = task(template), free(" yes ", ("user", "hi"))
    assert marked(one, example) == expected
    assert expected.replace("[ yes", " yes").replace("[yes", "yes")[:-1] + left == by_transformers(one, example)
    prompt = TextExample("1", "hi", (" yes ",), 0, ("yes",))  # a prompt is what a user says
    assert marked(one, prompt) == expected


def test_what_only_the_generation_prompt_has_is_read_before_the_answer():
    one, example = task(BLOCK_IN_GENERATION), free("yes", ("user", "hi"))
    assert marked(one, example) == HI + THINK + "[yes<|im_end|>]"
    assert by_transformers(one, example) == HI + "yes<|im_end|>\n"  # would not be what the model is asked for


def test_template_without_an_end_of_turn_gets_the_end_of_text():
    assert marked(task(NO_END), free("yes", ("user", "hi"))) == "user: hi\nassistant: [yes</s>]"


def test_only_the_last_answer_is_learned():
    turns = (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    one, example = task(CHATML), free("d", *turns)
    assert marked(one, example).endswith("\nb<|im_end|>\n" + HI.replace("hi", "c") + "[d<|im_end|>]")
    assert marked(one, example).replace("[d", "d")[:-1] + "\n" == by_transformers(one, example)


def test_shipped_model_has_a_template_of_its_own():
    tokenizer = load_tokenizer("smollm2-135m")
    one = TextTask("t", tokenizer, len(tokenizer), 512, style=Style(chat=True))
    example = free("Paris", ("user", "Capital of France?"), ("assistant", "Of which?"), ("user", "Of France."))
    found = marked(one, example)
    assert found.endswith("<|im_start|>user\nOf France.<|im_end|>\n<|im_start|>assistant\n[Paris<|im_end|>]")
    assert found.replace("[Paris", "Paris")[:-1] + "\n" == by_transformers(one, example)
    encoded = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert list(one.encode("hi", "yes")[0]) == encoded["input_ids"]


def test_choices_are_scored_as_answers_without_an_end():
    one = task(CHATML)
    example = TextExample("1", "hi", ("yes", "no"), 1, ("yes", "no"))
    assert marked(one, example) == HI + "[no]"
    assert [one.tokenizer.decode(e.prompt + e.answer + e.end) for e in one._encoded(example, example.choices)] == [
        HI + "yes",
        HI + "no",
    ]
    unlabelled = one.collate([example.without_label()])
    assert (one.tokenizer.decode(unlabelled.inputs["input_ids"][0]), unlabelled.targets.tolist()) == (HI, [UNLABELLED])


def test_long_conversation_loses_its_oldest_tokens():
    first = task(GEMMA).tokenizer.convert_tokens_to_ids("<s>")
    tokenizer = task(GEMMA).tokenizer
    narrow = TextTask("t", tokenizer, len(tokenizer), 512, start=(first,), style=Style(chat=True, max_length=12))
    found = marked(narrow, free("yes", ("user", "a long question")))
    assert found == "<s>n<end_of_turn>\n<start_of_turn>model\n[yes<end_of_turn>]"  # twelve inputs
    assert narrow.notes() == ["1 prompts were longer than task.max_length and lost their oldest tokens"]


@pytest.mark.parametrize(
    ("template", "turns", "match"),
    [
        (GEMMA, (("system", "s"), ("user", "u")), "System role not supported.*roles system, user"),
        (LLAMA_2, (("system", "s"), ("user", "u")), "Only user and assistant.*roles system, user"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", (("user", "u"),), "leaves out the assistant's answer"),
        (CHATML.replace("assistant\n{% endif", "model\n{% endif"), (("user", "u"),), "after its generation prompt"),
        ("a\n{% if %}", (("user", "u"),), r"template of the model is no valid template \(line 2: "),
        ("{{ 1 // 0 }}", (("user", "u"),), r"fails on this conversation \(ZeroDivisionError: "),
        ("{{ range(1000000) }}", (("user", "u"),), r"fails on this conversation \(OverflowError: "),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", (("user", "u"),), r"fails on .*RecursionError"),
        ("{{ '%(x)s' % {} }}", (("user", "u"),), r"fails on this conversation \(KeyError: 'x'"),
        ("{{ nothing.at.all }}", (("user", "u"),), r"fails on this conversation \(UndefinedError: "),
        ({"tool_use": "x", "rag": "y"}, (("user", "u"),), r"fails on this conversation \(ValueError: "),
    ],
)
def test_template_that_does_not_fit_is_refused(template, turns, match):
    with pytest.raises(UserError, match=match):
        task(template).collate([free("yes", *turns)])


def test_tokenizer_without_a_template_is_refused_at_once(tokenizer):
    with pytest.raises(UserError, match=r"no chat template.*task\.format\.chat"):
        task(None)
    with pytest.raises(UserError, match="no chat template"):
        TextTask("t", tokenizer, 16, 32).collate([free("a", ("user", "cat"))])


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%d %b %Y') }}" + CHATML,
        "{% set form = '%d ' + '%b %Y' %}{{ strftime_now(form) }}" + CHATML,
        "{% macro today(form) %}{{ strftime_now(form) }}{% endmacro %}{{ today('%d %b %Y') }}" + CHATML,
        {"default": "{{ strftime_now('%d %b %Y') }}" + CHATML, "tool_use": "x"},
        [{"name": "only", "template": "{{ strftime_now('%d %b %Y') }}" + CHATML}],
    ],
)
def test_template_that_writes_the_date_gives_the_same_prompt_on_every_day(template):
    assert marked(task(template), free("yes", ("user", "hi"))).startswith("26 Jul 2024<|im_start|>user")
