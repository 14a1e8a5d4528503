"""Where a prompt ends and its answer begins, in tokens."""

import pytest
from tests.modalities.text.byte_pairs import byte_level
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedcollm.data.sources.icd10 import load_icd10
from fedcollm.errors import UserError
from fedcollm.modalities.text.encoding import Encoder
from fedcollm.modalities.text.style import Style
from fedcollm.models.pretrained import load_tokenizer

END = "<end>"


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level(" Paris", "は東", "東京", special=(END, "<s>"), eos=END)


def encoder(tokenizer, context: int = 64, start: tuple[int, ...] = (), **style) -> Encoder:
    return Encoder(tokenizer, len(tokenizer), context, start, Style(**style))


def texts(tokenizer, one) -> tuple[str, ...]:
    return tuple(tokenizer.decode(tokens) for tokens in (one.prompt, one.answer, one.end))


@pytest.mark.parametrize(
    ("prompt", "answer", "joiner", "expected"),
    [
        ("Q:", "Paris", " ", ("Q:", " Paris")),
        ("Q: ", "Paris", " ", ("Q:", " Paris")),  # apart, " " would be a token of the prompt
        ("Q:\n", "Paris", " ", ("Q:\n", "Paris")),  # as it was written: no space is added
        ("Q:\n ", "Paris", " ", ("Q:", "\n Paris")),
        ("Q:", "Paris", "", ("Q:", "Paris")),
        ("Q:", "Paris", " -> ", ("Q:", " -> Paris")),
        ("首都は", "京都", "", ("首都は", "京都")),
        ("首都は", "東京", "", ("首都", "は東京")),  # one token reaches across the border
        ("", "Paris", " ", (END, " Paris")),
        (" ", "Paris", " ", (END, " Paris")),
    ],
)
def test_prompt_and_answer_are_the_tokens_of_the_whole_text(tokenizer, prompt, answer, joiner, expected):
    (one,) = encoder(tokenizer, joiner=joiner).encode(prompt, [answer])
    assert texts(tokenizer, one) == (*expected, "")
    whole = "".join(expected).removeprefix(END)
    bare = one.prompt if prompt.strip() else ()
    assert bare + one.answer == tuple(tokenizer(whole, add_special_tokens=False).input_ids)


def test_what_moved_to_the_answer_is_known(tokenizer):
    assert encoder(tokenizer, joiner="").encode("首都は", ["東京"])[0].lead == "は"
    assert encoder(tokenizer, joiner=" -> ").encode("Q:", ["Paris"])[0].lead == " -> "


def test_unknown_text_that_reaches_across_the_border_belongs_to_the_answer():
    made = Tokenizer(models.WordLevel({"<unk>": 0, "w1": 1, "w2": 2, "w3": 3}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    found = encoder(words, joiner="").encode("w1 Ω", ["β w3", " w3", "β"])
    assert [(one.prompt, one.answer, one.lead) for one in found] == [
        ((1,), (0, 3), "Ω"),
        ((1, 0), (3,), ""),
        ((1,), (0,), "Ω"),
    ]
    assert encoder(words).encode("w1 Ω ", ["w3"])[0][:2] == ((1, 0), (3,))


def test_special_tokens_that_the_models_lack_are_refused_where_they_are_used(tokenizer):
    few = Encoder(tokenizer, tokenizer.eos_token_id, 64, (), Style())
    with pytest.raises(UserError, match=f"ends texts with '{END}', token .* know only {tokenizer.eos_token_id} tokens"):
        few.encode("Q:", ["Paris"], free=True)
    assert few.encode("Q:", ["Paris"])[0].end == ()  # a choice needs no end
    assert (few.start_token(), few.padding) == (0, 0)
    with pytest.raises(UserError, match="'<s>' in 'the beginning of every text' is unknown"):
        Encoder(tokenizer, 256, 64, (len(tokenizer) - 1,), Style()).encode("Q:", ["a"])


def test_free_answer_ends_once(tokenizer):
    free = encoder(tokenizer).encode("Q:", ["Paris", f"Paris{END}"], free=True)
    assert [texts(tokenizer, one) for one in free] == [("Q:", " Paris", END)] * 2
    assert texts(tokenizer, encoder(tokenizer, learns_end=False).encode("Q:", ["Paris"], free=True)[0])[2] == ""


def test_tokenizer_without_an_end_is_noticed():
    none = encoder(byte_level())
    assert none.encode("Q:", ["a"], free=True)[0].end == ()
    assert none.lacks_end
    assert not encoder(byte_level()).lacks_end


def test_beginning_of_text_is_not_doubled(tokenizer):
    first = tokenizer.convert_tokens_to_ids("<s>")
    one, other = (encoder(tokenizer, start=(first,)).encode(prompt, ["b"])[0] for prompt in ("a", "<s>a"))
    assert one.prompt == other.prompt == (first, *tokenizer("a").input_ids)


def test_long_prompt_keeps_its_beginning_of_text_and_the_end_takes_room(tokenizer):
    first = tokenizer.convert_tokens_to_ids("<s>")
    narrow = encoder(tokenizer, context=5, start=(first,))
    for prompt in ("abcdefgh", "<s>abcdefgh"):
        assert tokenizer.decode(narrow.encode(prompt, ["x"], free=True)[0].prompt) == "<s>gh"
        assert tokenizer.decode(narrow.encode(prompt, ["x"])[0].prompt) == "<s>fgh"
    assert narrow.truncated == 2


def test_what_a_model_continues_does_not_depend_on_the_right_answer(tokenizer):
    first = tokenizer.convert_tokens_to_ids("<s>")
    narrow = encoder(tokenizer, context=8, start=(first,), max_new_tokens=3)
    asked = [narrow.asked(one) for one in narrow.encode("abcdefghij", ["x", "wxyz"], free=True)]
    assert [(tokenizer.decode(prompt), most) for prompt, most in asked] == [("<s>fghij", 3)] * 2  # six and three
    assert narrow.truncated_to_ask == 1
    wide = encoder(tokenizer, context=8, max_new_tokens=64)
    asked = [wide.asked(one) for one in wide.encode("abcdefghij", ["x", "wxyz"], free=True)]
    assert [(tokenizer.decode(prompt), most) for prompt, most in asked] == [("fghij", 4)] * 2  # half of the context
    ((short, most),) = [wide.asked(one) for one in wide.encode("ab", ["x"])]
    assert (tokenizer.decode(short), most, wide.truncated_to_ask) == ("ab", 7, 1)


@pytest.mark.parametrize(("limit", "key"), [(None, "the models' context of 4 tokens"), (4, "task.max_length: 4")])
def test_answer_that_does_not_fit_is_refused(tokenizer, limit, key):
    with pytest.raises(UserError, match=key):
        encoder(tokenizer, context=4, max_length=limit).encode("Q:", ["abcde"])


def test_text_without_a_token_is_refused():
    nothing = byte_level()
    nothing.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    with pytest.raises(UserError, match="has no tokens"):
        encoder(nothing, joiner="").encode("x", ["x"])


def test_prompts_that_end_in_no_space_have_the_tokens_of_the_harness():
    """As in lm-evaluation-harness: what follows the tokens of the prompt in those of the whole text."""
    tokenizer = load_tokenizer("smollm2-135m")
    examples = load_icd10(6, seed=0).train[:100]
    one = Encoder(tokenizer, len(tokenizer), 512, (), Style())
    assert len(examples) == 100
    for example in examples:
        for choice, got in zip(example.choices, one.encode(example.prompt, example.choices), strict=True):
            prompt, whole = tokenizer(
                [example.prompt, f"{example.prompt} {choice}"], add_special_tokens=False
            ).input_ids
            assert (*got.prompt, *got.answer) == tuple(whole)
            assert list(got.answer) == whole[len(prompt) :]
