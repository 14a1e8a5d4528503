"""Texts as rows: n-grams, places and hidden states."""

import pytest
import torch
from tests.conftest import tiny_llama
from tests.parties import add_adapter

from fedcollm.config import StatisticsConfig
from fedcollm.errors import UserError
from fedcollm.federation.statistics import moments, scores, solve
from fedcollm.modalities.text.cross_tokenizer import TokenizerBridge
from fedcollm.modalities.text.evidence import choice_texts
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.task import TextTask
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.models.fused.patch import fuse

CONSTANT, NGRAMS, SLM = (StatisticsConfig(features=name, columns=64) for name in ("constant", "ngrams", "slm"))


def labelled(noun: str, answer: int | None = 0) -> TextExample:
    return TextExample(noun, f"the {noun} is a :", ("animal", "colour"), answer, ("animal", "colour"))


def own(prompt: str, *choices: str, answer: int | None = 0) -> TextExample:
    return TextExample(prompt, prompt, choices, answer, tuple("ABCDE"[: len(choices)]))


@pytest.fixture
def task(tokenizer) -> TextTask:
    return TextTask("toy", tokenizer, 16, 32)


AB = ("A", "B")
LETTERED = TextExample("1", "Question: A. or B.?\nA. red one\nB. cat\nAnswer:", AB, 1, AB, own_choices=True)


def test_labels_are_shared_unless_the_choices_are_an_examples_own():
    assert labelled("cat").shares_labels
    assert not own("the cat is", "red", "blue").shares_labels
    assert not LETTERED.shares_labels
    assert TextExample("1", "grade:", AB, 0, AB).shares_labels


def test_grades_that_are_letters_are_labels_of_all_examples(task):
    grades = [TextExample(prompt, prompt, AB, answer, AB) for answer, prompt in enumerate(["red", "a blue A. B. cat"])]
    evidence = task.evidence(grades, NGRAMS)
    assert (evidence.counts, evidence.labels) == ((1, 1), AB)
    assert evidence.targets.tolist() == [[1.0, -1.0], [-1.0, 1.0]]


def test_choices_that_are_letters_have_the_texts_that_the_prompt_lists():
    assert choice_texts(LETTERED) == ("red one", "cat")
    assert choice_texts(own("the cat is", "red", "blue")) == ("red", "blue")
    assert choice_texts(TextExample("1", "which letter?", AB, 0, AB, own_choices=True)) == AB


def test_prompt_with_shared_labels_is_a_row_and_its_n_grams_depend_on_nothing_else(task):
    evidence = task.evidence([labelled("cat"), labelled("red", None)], NGRAMS)
    assert (evidence.counts, evidence.labels, evidence.size) == ((1, 1), ("animal", "colour"), (64, 2))
    assert evidence.targets.tolist() == [[1.0, -1.0], [0.0, 0.0]]
    assert evidence.rows.norm(dim=1).tolist() == [pytest.approx(1.0)] * 2
    assert torch.equal(task.evidence([labelled("red")], NGRAMS).rows, evidence.rows[1:])


def test_n_grams_by_hand(task):
    # "is" gives " is", "is " and " is ", "a" gives " a ": four n-grams, of 3, 3, 4 and 3 characters
    one = TextExample("1", "is A", ("x", "y"), 0, ("x", "y"))
    wide = StatisticsConfig(features="ngrams", columns=2**14)
    values = task.evidence([one], wide).rows[0]
    assert values[values != 0].abs().tolist() == [pytest.approx(0.5)] * 4
    assert values.min() < 0 < values.max()  # signs alternate


def test_choice_of_an_examples_own_is_a_row(task):
    evidence = task.evidence([own("the cat is", "red", "blue", answer=1), own("a dog", "red", "good", "bad")], NGRAMS)
    assert (evidence.counts, evidence.labels, evidence.size) == ((2, 3), (), (64, 1))
    assert evidence.targets[:, 0].tolist() == [-1.0, 1.0, 1.0, -1.0, -1.0]
    assert evidence.rows.norm(dim=1).tolist() == [pytest.approx(1.0)] * 5


def test_pairs_of_a_prompt_word_and_a_choice_word_by_hand(task):
    # the choice "b" has one n-gram, " b "; the prompt's two distinct words make two pairs with it, each 1/√2 of their
    # part, which weighs 1/4; the norm of both parts together is √(1 + 1/16)
    wide = StatisticsConfig(features="ngrams", columns=2**14)
    values = task.evidence([own("A c, a", "b", "d")], wide).rows[0].abs()
    found = sorted(values[values != 0].tolist())
    assert found == [pytest.approx(0.25 / 2.125**0.5)] * 2 + [pytest.approx(1 / 1.0625**0.5)]


def test_a_task_that_the_prompt_decides_is_learned(task):
    # in either order of the choices, "cat" is an animal and "red" a colour: the choices alone tell nothing
    kinds = [("animal", "colour"), ("colour", "animal")]
    examples = [
        own(f"the {w} is a", *k, answer=k.index(a)) for w, a in (("cat", "animal"), ("red", "colour")) for k in kinds
    ]
    weights = solve(moments(task, examples, NGRAMS, None), 0.01)
    found = [int(values.argmax()) for values in scores(weights, task.evidence(examples, NGRAMS))]
    assert found == [example.answer for example in examples] == [0, 1, 1, 0]


def test_constant_features_tell_only_the_place_of_a_choice(task):
    shared = task.evidence([labelled("cat"), labelled("red")], CONSTANT)
    assert shared.rows.tolist() == [[1.0], [1.0]]
    assert shared.targets.shape == (2, 2)
    places = task.evidence([own("the cat is", "red", "blue"), LETTERED], CONSTANT)
    assert places.rows.argmax(dim=1).tolist() == [0, 1, 0, 1]


def hidden(model, tokens: tuple[int, ...]) -> torch.Tensor:
    """The hidden state at the last token by transformers itself, without padding."""
    state = model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0, -1]
    return state / state.norm()


@pytest.mark.parametrize("fused", [False, True])
def test_hidden_states_are_those_at_the_last_token_without_the_adapter(task, fused):
    base, model = tiny_llama(), add_adapter(tiny_llama(), rank=2, seed=1)
    write_adapter(model, {name: torch.full_like(t, 0.1) for name, t in read_adapter(model).items()})
    if fused:
        fuse(model)
    examples = [labelled("cat"), TextExample("1", "red", ("animal", "colour"), 0, ("animal", "colour"))]
    evidence = task.evidence(examples, SLM, model)
    for example, row in zip(examples, evidence.rows, strict=True):
        assert torch.allclose(row, hidden(base, task.encode(example.prompt, "a")[0]), atol=1e-5)
    choices = task.evidence([own("the cat is :", "good bird", "bad")], SLM, model)
    assert torch.allclose(choices.rows[0], hidden(base, (10, 5, 8, 11, 14, 7)), atol=1e-5)
    assert torch.allclose(choices.rows[1], hidden(base, (10, 5, 8, 11, 15)), atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hidden_states_need_a_model(task):
    with pytest.raises(ValueError, match="need a model"):
        task.evidence([labelled("cat")], SLM)


def test_text_longer_than_the_context_loses_its_oldest_tokens(tokenizer, llama):
    task = TextTask("toy", tokenizer, 16, context_length=4)
    evidence = task.evidence([own("the cat is : red", "good bird", "bad")], SLM, llama)
    assert torch.allclose(evidence.rows[0], hidden(llama, (11, 2, 14, 7)), atol=1e-5)  # ": red good bird"


def test_pair_with_two_tokenizers_has_the_slms(task, pieces, llama):
    bridge = TokenizerBridge(task, TextTask("toy", pieces, 24, 32))
    assert torch.equal(
        bridge.evidence([labelled("cat")], SLM, llama).rows, task.evidence([labelled("cat")], SLM, llama).rows
    )


def test_free_answers_are_refused(task):
    free = TextExample("7", "the cat is", ("red",), 0, ("red",))
    with pytest.raises(UserError, match="example '7' of toy has a free answer"):
        task.evidence([labelled("cat"), free], NGRAMS)


@pytest.mark.parametrize(
    "other",
    [own("the cat is", "red", "blue"), TextExample("9", "x", ("colour", "animal"), 0, ("colour", "animal"))],
    ids=["choices of its own", "another order"],
)
def test_examples_must_share_all_labels_or_none(task, other):
    with pytest.raises(UserError, match="labels of example"):
        task.evidence([labelled("cat"), other], NGRAMS)
