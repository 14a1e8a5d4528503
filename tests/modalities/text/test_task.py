"""Which rows of logits count, and scores by hand on models whose probabilities we choose."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig

from fedcollm.errors import UserError
from fedcollm.messages import Score
from fedcollm.modalities.base import UNLABELLED
from fedcollm.modalities.exhibits import Answer, Exhibit
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.task import TextTask
from fedcollm.models.fused.attention import GROUPED

WORDS = "<pad> <unk> red green blue cat dog bird is a the : colour animal good bad".split()  # noqa: SIM905
IDS = {word: i for i, word in enumerate(WORDS)}


def ids(text: str) -> tuple[int, ...]:
    return tuple(IDS[word] for word in text.split())


def example(prompt: str, *choices: str, answer: int | None = 0) -> TextExample:
    return TextExample(prompt, prompt, choices, answer, tuple(f"label {choice}" for choice in choices))


@pytest.fixture
def task(tokenizer) -> TextTask:
    return TextTask("toy", tokenizer, vocabulary_size=16, context_length=32)


@pytest.fixture
def model(llama) -> nn.Module:
    """A tiny Llama whose weights are large enough for every position and token to matter."""
    torch.manual_seed(1)
    for parameter in llama.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.5)
    return llama


# --- examples ---


def test_label_is_the_name_of_the_right_choice():
    assert example("the cat is :", "a", "b", answer=1).label == "label b"


def test_without_label_forgets_the_answer_and_nothing_else():
    labelled = example("the cat is :", "a", "b", answer=1)
    unlabelled = labelled.without_label()
    assert (unlabelled.answer, unlabelled.label) == (None, None)
    assert (unlabelled.prompt, unlabelled.choices, unlabelled.id) == (labelled.prompt, labelled.choices, labelled.id)


def test_content_is_the_prompt_and_the_choices_as_they_are_but_in_one_unicode_form():
    one, other = (example(f"caf{e}:", f"th{e}", "b").content for e in ("\u00e9", "e\u0301"))
    assert one == other
    assert len({example(*texts).content for texts in (("Co", "a"), ("CO", "a"), ("Co ", "a"), ("Co", "b"))}) == 4


# --- encoding ---


class Longest:
    """A tokenizer that always takes the longest piece it knows; a token is the index of its piece."""

    def __init__(self, *pieces: str):
        self.pieces = pieces
        self.pad_token_id = 0

    def __call__(self, texts: list[str], add_special_tokens: bool):
        assert not add_special_tokens
        return SimpleNamespace(input_ids=[self.cut(text) for text in texts])

    def cut(self, text: str) -> list[int]:
        tokens = []
        while text:
            piece = max((p for p in self.pieces if text.startswith(p)), key=len)
            tokens.append(self.pieces.index(piece))
            text = text[len(piece) :]
        return tokens


@pytest.mark.parametrize("prompt", ["x:", "x: "])
def test_space_before_the_answer_belongs_to_the_answer(prompt):
    # encoded apart, the prompt would end in the token " " and the answer would be "y" without its space
    task = TextTask("toy", Longest("x", ":", "y", " ", " y"), 16, 32)
    assert task.encode(prompt, "y") == ((0, 1), (4,))


def test_answer_is_cut_as_part_of_the_whole_text():
    # the answer alone would be "y", "z"; behind the prompt its text is " yz", one token
    task = TextTask("toy", Longest("x", ":", "y", "z", " ", " yz"), 16, 32)
    assert task.encode("x:", "yz") == ((0, 1), (5,))


def test_answer_that_melts_into_the_prompt_keeps_a_token():
    task = TextTask("toy", Longest("x", ":", "y", " ", ": y"), 16, 32)
    assert task.encode("x:", "y") == ((0,), (4,))  # together, they are the tokens of "x: y"


def test_encode_by_hand(task):
    assert task.encode("the cat is :", "good bird") == ((10, 5, 8, 11), (14, 7))


def test_size_is_the_length_of_prompt_and_first_choice(task):
    assert task.size(example("the cat is :", "good bird", "bad")) == 6


def test_lengths_are_those_that_are_learned_and_find_an_end_that_the_models_lack(tokenizer):
    talk = TextExample("1", "", ("good",), 0, ("good",), turns=(("user", "red cat"),))
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + ' ' }}{% endfor %}"
    assert TextTask("t", tokenizer, 16, 32).lengths(talk) == {"tokens of a prompt": 2, "tokens of an answer": 1}
    tokenizer.add_special_tokens({"eos_token": "<new>"})
    free = TextExample("1", "red", ("cat",), 0, ("cat",))
    with pytest.raises(UserError, match=r"ends texts with '<new>', token 16, but the models know only 16"):
        TextTask("t", tokenizer, 16, 32).lengths(free)


def test_long_prompt_loses_its_oldest_tokens_and_the_answer_none(tokenizer):
    task = TextTask("toy", tokenizer, 16, context_length=6)
    # 3 answer tokens, of which the last is no input: 6 - 2 = 4 tokens of the prompt stay
    assert task.encode("red green blue the cat is :", "the good bird") == (ids("the cat is :"), ids("the good bird"))
    assert task.truncated == 1


def test_prompt_that_just_fits_is_not_cut(tokenizer):
    task = TextTask("toy", tokenizer, 16, context_length=6)
    assert task.encode("the cat is :", "the good bird") == (ids("the cat is :"), ids("the good bird"))
    assert task.truncated == 0


def test_truncated_counts_prompts_and_not_choices_or_calls(tokenizer):
    task = TextTask("toy", tokenizer, 16, context_length=3)
    for prompt in ("the cat is :", "the dog is :", "the cat is :"):
        for answer in ("good", "bad"):
            task.encode(prompt, answer)
    assert task.truncated == 2


def test_truncated_inputs_are_as_long_as_the_context(tokenizer):
    task = TextTask("toy", tokenizer, 16, context_length=6)
    batch = task.collate([example("red green blue the cat is :", "the good bird")])
    assert batch.inputs["input_ids"].shape == (1, 6)


def test_answer_longer_than_the_context_is_refused(tokenizer):
    task = TextTask("toy", tokenizer, 16, context_length=2)
    assert task.encode("the cat is :", "good bird") == (ids(":"), ids("good bird"))
    with pytest.raises(UserError, match=r"answer of 3 tokens .*context of 2"):
        task.encode("the cat is :", "the good bird")


def test_empty_prompt_still_gives_a_row_for_every_answer_token(task, model):
    logits = task.logits(model, task.collate([example("", "good bird"), example("the cat is :", "bad")]))
    assert logits.shape == (3, 16)
    alone = task.logits(model, task.collate([example("", "good bird")]))
    torch.testing.assert_close(logits[:2], alone, atol=1e-5, rtol=1e-5)


# --- batches and rows ---


def test_batch_by_hand(task):
    batch = task.collate([example("the cat is :", "good bird"), example("red :", "bad")])
    assert batch.inputs["input_ids"].tolist() == [list(ids("the cat is : good")), [0, 0, 0, *ids("red :")]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]
    assert batch.rows.tolist() == [[True, True], [False, True]]
    assert task.targets(batch).tolist() == [14, 7, 15]


def test_batch_supervises_the_right_choice(task):
    batch = task.collate([example("the cat is :", "good bird", "bad", "red green", answer=2)])
    assert task.targets(batch).tolist() == [IDS["red"], IDS["green"]]


EXAMPLES = [
    example("the cat is :", "good bird"),
    example("red :", "bad"),
    example("the blue bird is a good dog :", "a good the cat", answer=0),
    example("is the dog good :", "red", "the good animal", answer=1),
]


def plain_rows(model: nn.Module, prompt: str, answer: str) -> torch.Tensor:
    """Logits that predict the answer tokens in one sequence without padding: [answer tokens, 16]."""
    start, tokens = len(ids(prompt)), ids(f"{prompt} {answer}")
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, start - 1 : len(tokens) - 1]


def test_rows_are_those_of_a_plain_forward_pass_one_column_before_each_answer_token(task, model):
    logits = task.logits(model, task.collate(EXAMPLES))
    expected = torch.cat([plain_rows(model, e.prompt, e.choices[e.answer]) for e in EXAMPLES])
    assert logits.shape == (2 + 1 + 4 + 3, 16)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_companions_and_padding_change_no_row(task, model):
    together = task.logits(model, task.collate(EXAMPLES))
    alone = torch.cat([task.logits(model, task.collate([e])) for e in EXAMPLES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_token_that_pads_is_never_seen(task, model, tokenizer):
    batch = task.collate(EXAMPLES)
    rows = task.logits(model, batch)
    padding = batch.inputs["attention_mask"] == 0
    assert padding.any()
    batch.inputs["input_ids"][padding] = IDS["blue"]
    torch.testing.assert_close(task.logits(model, batch), rows, atol=1e-5, rtol=1e-4)


def test_loss_of_a_batch_is_that_of_its_examples_weighted_by_their_rows(task, model):
    def loss(examples):
        batch = task.collate(examples)
        return task.loss(task.logits(model, batch), batch).item()

    # 2, 1, 4 and 3 answer tokens
    expected = (2 * loss(EXAMPLES[:1]) + loss(EXAMPLES[1:2]) + 4 * loss(EXAMPLES[2:3]) + 3 * loss(EXAMPLES[3:])) / 10
    assert loss(EXAMPLES) == pytest.approx(expected, abs=1e-5)


def test_unlabelled_example_has_the_row_of_the_first_answer_token(task, model):
    labelled = example("the cat is :", "good bird")
    batch = task.collate([labelled.without_label()])
    assert task.targets(batch).tolist() == [UNLABELLED]
    row = task.logits(model, batch)
    assert row.shape == (1, 16)
    torch.testing.assert_close(row, plain_rows(model, "the cat is :", "good bird")[:1], atol=1e-5, rtol=1e-4)


def test_unlabelled_batch_holds_nothing_of_any_choice(task):
    one = task.collate([example("the cat is :", "good bird", "bad", answer=None)])
    two = task.collate([example("the cat is :", "red green blue", "dog", answer=None)])
    assert one.inputs["input_ids"].tolist() == two.inputs["input_ids"].tolist() == [list(ids("the cat is :"))]


def test_logits_are_cut_to_the_common_vocabulary(tokenizer, model):
    rows = plain_rows(model, "a cat is", "red")
    cut = TextTask("toy", tokenizer, vocabulary_size=10, context_length=32)
    logits = cut.logits(model, cut.collate([example("a cat is", "red")]))
    assert logits.shape == (1, 10)
    torch.testing.assert_close(logits, rows[:, :10], atol=1e-5, rtol=1e-4)


def test_logits_of_a_half_precision_model_are_float32(task, llama):
    logits = task.logits(llama.bfloat16(), task.collate(EXAMPLES))
    assert logits.dtype == torch.float32


def test_start_stands_before_every_prompt_however_much_of_it_is_cut(tokenizer):
    task = TextTask("toy", tokenizer, 16, context_length=5, start=(1,))
    assert task.encode("the cat :", "red") == ((1, *ids("the cat :")), ids("red"))
    assert task.encode("", "red") == ((1,), ids("red"))
    assert task.encode("the blue bird is :", "red") == ((1, *ids("blue bird is :")), ids("red"))
    assert task.encode("the cat :", "red good bad dog bird") == ((1,), ids("red good bad dog bird"))
    assert task.truncated == 2


# --- scores by hand: a model that knows the next word by the last one alone ---


class Bigrams(nn.Module):
    """P(next | last) as given; what is left is spread over the other words.

    Calls are noted: `widths` holds the number of sequences of each.
    """

    def __init__(self, **following: dict[str, float]):
        super().__init__()
        self.config = LlamaConfig()
        self.widths: list[int] = []
        table = torch.zeros(16, 16)
        for last in WORDS:
            known = following.get(last, {})
            table[IDS[last]] = (1 - sum(known.values())) / (16 - len(known))
            for word, probability in known.items():
                table[IDS[last], IDS[word]] = probability
        self.table = nn.Parameter(table.log())

    def forward(self, input_ids, attention_mask, position_ids, use_cache, logits_to_keep):
        self.widths.append(len(input_ids))
        return SimpleNamespace(logits=self.table[input_ids][:, logits_to_keep])


def after_colon(following: dict[str, float], **others: dict[str, float]) -> Bigrams:
    return Bigrams(**{":": following}, **others)


def likelihoods(task: TextTask, model: nn.Module, *examples: TextExample) -> list[list[float]]:
    with torch.no_grad():
        return [values.tolist() for values, _ in task._likelihoods(model, examples)]


#: ln P(bad) = ln 1/2 = -0.693, a character -0.231; ln P(the good bird) = ln 1/16 = -2.773, a character -0.213
LONG_OR_LIKELY = example("the cat is :", "bad", "the good bird", answer=1)


def long_or_likely() -> Bigrams:
    return after_colon({"bad": 0.5, "the": 0.25}, the={"good": 0.5}, good={"bird": 0.5})


def test_log_likelihood_of_a_choice_sums_its_tokens(task):
    (values,) = likelihoods(task, long_or_likely(), LONG_OR_LIKELY)
    assert values == pytest.approx([-0.6931472, -2.7725887], abs=1e-6)


def test_acc_takes_the_likeliest_choice_and_acc_norm_the_likeliest_a_character(task):
    score = task.score(long_or_likely(), [LONG_OR_LIKELY])
    assert score.sums == {"acc": 0.0, "acc_norm": 1.0}
    assert score.value == 0.0
    assert score.count == 1


def test_normalised_task_is_scored_by_acc_norm(tokenizer):
    task = TextTask("toy", tokenizer, 16, 32, normalized=True)
    score = task.score(long_or_likely(), [LONG_OR_LIKELY])
    assert score.value == 1.0
    assert score.outcomes == {LONG_OR_LIKELY.id: 1.0}


def test_confusion_counts_true_and_predicted_labels(task):
    score = task.score(
        long_or_likely(), [LONG_OR_LIKELY, example("the dog is :", "bad", "the good bird", answer=0), LONG_OR_LIKELY]
    )
    assert score.confusion == {("label the good bird", "label bad"): 2, ("label bad", "label bad"): 1}


def test_first_of_equal_choices_wins(task):
    model = after_colon({"cat": 0.25, "dog": 0.25})
    right, wrong = example("a :", "cat", "dog", answer=0), example("a :", "dog", "cat", answer=1)
    assert task.score(model, [right]).sums["acc"] == 1.0
    assert task.score(model, [wrong]).sums["acc"] == 0.0


def test_choices_of_one_token_are_read_off_one_row(task):
    model = after_colon({"cat": 0.5, "dog": 0.25, "bird": 0.125})
    (values,) = likelihoods(task, model, example("a :", "dog", "cat", "bird"))
    assert values == pytest.approx([math.log(0.25), math.log(0.5), math.log(0.125)], abs=1e-6)
    assert model.widths == [1]


def test_one_token_path_equals_the_general_path(task, model):
    # a third choice of two tokens sends the same two choices over the general path
    with torch.no_grad():
        ((fast, _),) = task._likelihoods(model, [example("the cat is :", "red", "good")])
        ((general, _),) = task._likelihoods(model, [example("the cat is :", "red", "good", "a bird")])
    torch.testing.assert_close(fast, general[:2], atol=1e-5, rtol=1e-5)


def test_probabilities_of_choices_add_up_and_follow_their_likelihoods(task, model):
    examples = [TextExample("1", "the cat is", ("red", "a good dog"), None, ("A", "B"))]
    with torch.inference_mode():
        (found,), (values,) = task.probabilities(model, examples), task.likelihoods(model, examples)
    assert float(found.sum()) == pytest.approx(1.0)
    assert float(found[0] / found[1]) == pytest.approx(math.exp(float(values[0] - values[1])), rel=1e-4)


def test_log_likelihoods_are_those_of_a_plain_forward_pass(task, model):
    choices = ("red", "a bird", "the good animal")
    companion = example("the blue bird is a good dog :", "a good the cat", "bad")
    with torch.no_grad():
        (values, _), _ = task._likelihoods(model, [example("the cat is :", *choices), companion])
    for value, choice in zip(values, choices, strict=True):
        rows = plain_rows(model, "the cat is :", choice).log_softmax(-1)
        assert value.item() == pytest.approx(
            sum(row[token].item() for row, token in zip(rows, ids(choice), strict=True)), abs=1e-4
        )


@pytest.mark.parametrize("attention", [GROUPED, "eager", "sdpa"])
def test_shared_prompt_gives_what_one_sequence_a_choice_gives(task, model, attention):
    model.set_attn_implementation(attention)
    together = example("the blue bird is :", "red", "a bird", "the good animal", "the good dog")
    with torch.no_grad():
        ((shared, greedy),) = task._likelihoods(model, [together])
        apart = [task._likelihoods(model, [example("the blue bird is :", choice)])[0] for choice in together.choices]
    torch.testing.assert_close(shared, torch.cat([values for values, _ in apart]), atol=1e-5, rtol=1e-5)
    assert greedy.tolist() == [likeliest.item() for _, likeliest in apart]


@pytest.mark.parametrize(("window", "passes"), [(5, 4), (11, 4), (12, 1)])
def test_shared_prompt_is_what_a_windowed_model_gives_one_sequence_a_choice(task, window, passes):
    torch.manual_seed(1)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.5}
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": window}
    shape = Gemma3TextConfig(vocab_size=16, hidden_size=16, intermediate_size=32, pad_token_id=0, **heads, **layers)
    model, seen = Gemma3ForCausalLM(shape).eval(), []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    together = example("the blue bird is :", "red", "a bird", "the good", "the dog")  # 5 tokens and 7 of the choices
    with torch.no_grad():
        ((shared, greedy),) = task._likelihoods(model, [together])
        assert seen == [1] * passes
        apart = [task._likelihoods(model, [example("the blue bird is :", choice)])[0] for choice in together.choices]
    torch.testing.assert_close(shared, torch.cat([values for values, _ in apart]), atol=1e-5, rtol=1e-5)
    assert greedy.tolist() == [likeliest.item() for _, likeliest in apart]


def test_prompt_is_read_once_for_all_choices(task):
    model = after_colon({})
    task.score(model, [example("a :", "the cat", "a dog bird", "bad")])
    assert model.widths == [1]


def test_choices_that_cut_the_prompt_differently_are_read_apart(tokenizer, model):
    narrow = TextTask("toy", tokenizer, 16, context_length=5)
    long = example("the blue bird is a good dog :", "red", "the good animal")
    with torch.no_grad():
        ((values, _),) = narrow._likelihoods(model, [long])
    ends = ["is a good dog :", "good dog :"]  # room for 5 and for 3 tokens
    for value, prompt, choice in zip(values, ends, long.choices, strict=True):
        rows = plain_rows(model, prompt, choice).log_softmax(-1)
        expected = sum(row[token].item() for row, token in zip(rows, ids(choice), strict=True))
        assert value.item() == pytest.approx(expected, abs=1e-4)


def test_scores_stay_with_their_examples_when_paths_mix(task):
    model = after_colon({"cat": 0.5, "the": 0.2, "dog": 0.1}, the={"dog": 0.5, "cat": 0.25})
    mixed = [
        example("a :", "dog", "cat"),
        example("a :", "the cat", "the dog", "cat"),
        example("a :", "cat"),
        example("a :", "the dog", "dog"),
    ]
    values = likelihoods(task, model, *mixed)
    expected = [[0.1, 0.5], [0.05, 0.1, 0.5], [0.5], [0.1, 0.1]]
    assert [[round(math.exp(v), 5) for v in row] for row in values] == expected


def test_forward_passes_of_scoring_are_no_wider_than_the_batch(task):
    model = long_or_likely()
    task.score(model, [example("a :", "the cat", "a dog", "bad"), example("the :", "the cat", "a dog", "bad")])
    assert model.widths == [2]


@pytest.fixture
def says(monkeypatch):
    """Let every model generate this text, whatever the prompt."""

    def let(text: str):
        monkeypatch.setattr(
            "fedcollm.modalities.text.task.generate", lambda model, prompts, *_: [ids(text)] * len(prompts)
        )

    return let


@pytest.mark.parametrize(
    ("answer", "exact", "f1", "greedy", "nats"),
    [
        ("a bird", 1, 1, 1, -math.log(0.6 * 0.7)),
        ("a cat", 0, 0, 0, -math.log(0.6 * 0.2)),  # the second token is not the likeliest
        ("the bird", 1, 1, 0, None),  # an article does not count
        ("red bird", 0, 2 / 3, 0, None),
    ],
)
def test_free_answer_is_scored_by_what_is_generated(task, says, answer, exact, f1, greedy, nats):
    model = after_colon({"a": 0.6, "the": 0.3}, a={"bird": 0.7, "cat": 0.2})
    says("a bird")
    with torch.no_grad():
        score = task.score(model, [example("is :", answer)])
    assert list(score.sums) == ["exact_match", "f1", "greedy", "loss", "acc"]
    found = [score.sums[name] for name in ("exact_match", "f1", "greedy", "acc")]
    assert found == pytest.approx([exact, f1, greedy, exact])
    assert (score.counts, score.value, score.outcomes) == ({"loss": 2}, exact, {"is :": exact})
    if nats is not None:
        assert score.mean("loss") == pytest.approx(nats / 2, abs=1e-5)


def test_mixture_of_choices_and_free_answers_keeps_the_accuracy_whatever_the_batches(task, says):
    model = after_colon({"a": 0.6, "the": 0.3}, a={"bird": 0.7, "cat": 0.2})
    says("a bird")
    mixed = [example("is :", "a bird"), example("is :", "the", "a", answer=1), example("good :", "red", "a", answer=0)]
    parts = [task.score(model, [one]) for one in mixed]
    for score in (task.score(model, mixed), sum(parts, Score({}, 0)), sum(parts[::-1], Score({}, 0))):
        assert next(iter(score.sums)) == "acc"
        assert (score.value, score.count, score.sums["exact_match"], score.mean("exact_match")) == (2 / 3, 3, 1, 1)
        assert score.counts == {"loss": 2, "exact_match": 1, "f1": 1, "greedy": 1, "acc_norm": 2}


# --- what the modality says of itself ---


def test_exhibit_is_the_prompt_and_the_label(task):
    one = example("the cat\nis :", "a", "b", answer=1)
    assert task.exhibit(one) == Exhibit(one.id, "the cat\nis :", "label b")
    assert task.exhibit(one.without_label()).truth == ""


def test_answers_are_labels_of_choices_or_what_is_generated(task, says):
    model = after_colon({"a": 0.6, "the": 0.3}, a={"bird": 0.7, "cat": 0.2})
    says("a bird")
    examples = [example("is :", "a bird"), example("is :", "the", "a", answer=0), example("is :", "a cat")]
    expected = [Answer("a bird", True), Answer("label a", False), Answer("a bird", False)]
    assert task.answers(model, examples) == expected


def test_conversation_is_shown_turn_by_turn(task):
    one = TextExample("1", "", ("Yes",), 0, ("Yes",), turns=(("system", "Be brief."), ("user", "Ready?")))
    assert task.exhibit(one).text == "system: Be brief.\nuser: Ready?"


def test_notes_count_the_prompts_that_were_cut(tokenizer):
    task = TextTask("toy", tokenizer, 16, context_length=3)
    assert task.notes() == []
    for prompt in ("red green blue cat", "red green blue cat", "red green blue dog", "red"):
        task.encode(prompt, "a")
    assert task.notes() == ["2 prompts were longer than the models' context and lost their oldest tokens"]


def test_facts_are_the_sizes_that_a_client_must_be_told(task):
    assert task.facts() == {"vocabulary_size": 16, "context_length": 32}


def test_options_hold_what_scores_depend_on(tokenizer):
    task = TextTask("toy", tokenizer, 16, 32, normalized=True, start=(1,))
    assert task.options | {"tokenizer": None, "tokenizer_digest": None} == {
        "vocabulary_size": 16,
        "context_length": 32,
        "metric": "acc_norm",
        "start": [1],
        "style": {"joiner": " ", "chat": False, "max_new_tokens": 64, "max_length": None, "learns_end": True},
        "tokenizer": None,
        "tokenizer_digest": None,
    }


def test_examples_are_written_and_read_as_json_lines(task, tmp_path):
    examples = [example("the cat is :", "a", "b", answer=1), example("red", "blue")]
    (tmp_path / "some.jsonl").write_text(task.write_examples(examples), encoding="utf-8")
    assert task.read_examples(tmp_path / "some.jsonl") == examples
