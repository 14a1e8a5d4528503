"""Augmentations of prompts, by hand."""

import time
from dataclasses import replace

import pytest
from tests.data.augmentation.fixed import Fixed

from fedcollm.data.augmentation.draws import Draws
from fedcollm.data.augmentation.text import TextBatches, changed, choice_order, paraphrase, synonym, word_dropout
from fedcollm.data.sources.icd10 import CHAPTERS
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.style import Style
from fedcollm.modalities.text.task import TextTask

ABC = ("A", "B", "C")


def lettered(prompt: str, answer: int | None = 0) -> TextExample:
    return TextExample("1", prompt, ABC, answer, ABC, own_choices=True)


def named(prompt: str, *choices: str) -> TextExample:
    return TextExample("1", prompt, choices, 0, ABC[: len(choices)], own_choices=True)


@pytest.mark.parametrize("form", ["{}. ", "({}) ", "{}) ", "{}: ", "[{}] ", "  {}.\t"])
def test_letters_stay_and_the_answer_follows_its_text(form):
    prompt = (
        "Which?\n"
        + "".join(f"{form.format(letter)}{text}\n" for letter, text in zip(ABC, ("x y", "z", "w"), strict=True))
        + "?"
    )
    made = choice_order(lettered(prompt, answer=0), 1.0, Fixed(0))  # turned around
    assert made.prompt == prompt.replace("x y", "#").replace("w", "x y").replace("#", "w")
    assert made.choices == ABC
    assert made.answer == 2
    assert choice_order(lettered(prompt, answer=1), 1.0, Fixed(0)).answer == 1
    assert choice_order(lettered(prompt, None), 1.0, Fixed(0)).answer is None


@pytest.mark.parametrize(
    ("prompt", "turned"),
    [
        ("Red, blue or green?", None),  # another spelling than the choices have
        ("Is it red, blue or green?", "Is it green, blue or red?"),
        ("red|blue|green:", "green|blue|red:"),
        ("Pick:\n- red\n- blue\n- green\n", "Pick:\n- green\n- blue\n- red\n"),
        ("Pick:\n1) red\n2) blue\n3) green", "Pick:\n1) green\n2) blue\n3) red"),
        ("Is red before blue, and blue before green?", None),
        ("red, blue, green, and again red, blue, green", None),
        ("darkred, blue, green", None),
    ],
)
def test_listed_choices_change_places_and_stay_the_answers(prompt, turned):
    example = named(prompt, "red", "blue", "green")
    assert choice_order(example, 1.0, Fixed(0)) == replace(example, prompt=turned or prompt)


@pytest.mark.parametrize("last", ["none of the above", "both A and B", "A or C", "only B", "the former", "A, B"])
def test_choices_that_refer_to_others_stay(last):
    example = lettered(f"Which?\nA. x\nB. y\nC. {last}")
    assert choice_order(example, 1.0, Fixed(0)) is example


def test_vitamin_a_is_no_reference():
    assert choice_order(lettered("Which?\nA. vitamin A\nB. y\nC. z"), 1.0, Fixed(0)).answer == 2


def test_last_turn_of_a_conversation_is_changed():
    turns = (("user", "Hi\nA. x\nB. y\nC. z"), ("assistant", "Yes?"), ("user", "Which?\nA. x\nB. y\nC. z"))
    made = choice_order(replace(lettered(""), turns=turns), 1.0, Fixed(0))
    assert made.turns == (*turns[:2], ("user", "Which?\nA. z\nB. y\nC. x"))
    assert made.answer == 2


def test_words_are_left_out_except_the_first_of_a_line_and_choices():
    example = lettered("Which one, please, is it?\nA. x y\nB. z\nC. w w\nBest answer:")
    assert word_dropout(example, 1.0, Fixed(0.05)).prompt == "Which,,?\nA. x y\nB. z\nC. w w\nBest:"
    assert word_dropout(example, 1.0, Fixed(0.1)) == example  # a draw from 0 to 1 below a tenth leaves a word out
    assert word_dropout(example, 2.0, Fixed(0.1)) != example
    japanese = named("これは何ですか。答え:", "x", "y")
    assert word_dropout(japanese, 3.0, Fixed(0)) == japanese


def test_synonym_is_another_name_of_the_same_code():
    cholera = TextExample("A00.0", "Cholera due to Vibrio cholerae 01, biovar cholerae:", CHAPTERS, 0, CHAPTERS)
    assert synonym(cholera, 1.0, Fixed(0)).prompt == "Classical cholera:"
    hypertension = TextExample("I10", "Essential (primary) hypertension:", CHAPTERS, 8, CHAPTERS)
    assert synonym(hypertension, 1.0, Fixed(0)) is hypertension  # the classification has none


def test_paraphrase_is_one_of_those_that_the_example_has():
    example = replace(lettered("{}"), paraphrases=("one", "two"))
    assert paraphrase(example, 1.0, Fixed(0)).prompt in ("one", "two")
    assert paraphrase(lettered("{}"), 1.0, Fixed(0)).prompt == "{}"


def test_an_example_depends_on_seed_epoch_and_content_alone():
    kinds, prompt = {"word_dropout": 1.0}, "a b c d e f g h i j k l m n o p q r s t u v w x y z"
    one, renumbered = (replace(lettered(prompt), id=name) for name in ("1", "2"))
    other = lettered(prompt.upper())

    def made(example: TextExample, seed: int = 0, epoch: int = 0, **more: float) -> str:
        return changed(example, Draws(kinds | more, 3.0, seed, epoch)).prompt

    assert made(one) == made(one) == made(one, choice_order=1.0, synonym=0.5)  # whatever else is on
    assert made(renumbered) == made(one)  # a client that reads its own file numbers its examples anew
    assert len({made(one), made(one, seed=1), made(one, epoch=1), made(other).lower()}) == 4
    assert changed(one, Draws({"word_dropout": 0.0}, 3.0, 0, 0)) is one


def test_batches_have_the_sizes_of_changed_prompts_and_keep_nothing(tokenizer):
    task = TextTask("toy", tokenizer, 16, 32)
    red = TextExample(
        "1", "the red", ("colour", "animal"), 0, ("colour", "animal"), paraphrases=("the good green bird",)
    )
    batches = TextBatches(task, Draws({"paraphrase": 1.0}, 1.0, 0, 0))
    assert (task.size(red), batches.size(red)) == (3, 5)
    assert batches.collate([red]).inputs["input_ids"].tolist() == [[10, 14, 3, 7]]  # as in WORDS
    assert [prompt for prompt, *_ in task.encoder._known] == ["the red"]
    assert task.collate([red]).inputs["input_ids"].tolist() == [[10, 2]]


def test_prompt_that_can_not_be_used_once_changed_stays_as_it_is(tokenizer):
    task = TextTask("toy", tokenizer, 10, 32, style=Style())  # of the words, those from "the" on are unknown
    red = TextExample("1", "is red", ("cat", "dog"), 0, ("cat", "dog"), paraphrases=("the red",))
    assert TextBatches(task, Draws({"paraphrase": 1.0}, 1.0, 0, 0)).collate([red]).inputs["input_ids"].tolist() == [
        [8, 2]
    ]
    assert task.truncated == 0


def test_words_are_left_out_of_white_space_in_no_time():
    text = "a" + " " * 30_000 + "!" + " " * 30_000 + "(b) c d"
    start = time.process_time()
    left = word_dropout(lettered(text), 5.0, Fixed(0.0)).prompt
    assert time.process_time() - start < 2
    assert left == text.removesuffix(" c d")
