"""Texts of tokens: what tokens add to a text is the text."""

import pytest
from tests.modalities.text.byte_pairs import byte_level as bytes_only
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedcollm.errors import UserError
from fedcollm.modalities.text.vocabulary import check_known, check_tokenizer_files, check_tokens, token_texts


@pytest.fixture
def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind: all 256 bytes, two merges, a special token and one that is added."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "Ġc", "at"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "c"), ("a", "t")]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    tokenizer.add_tokens([AddedToken("é!", special=False)])
    return tokenizer


@pytest.mark.parametrize("text", [" cat", " the café 你\n\tx", "é!"])
def test_tokens_of_a_text_are_the_text_again(byte_level, text):
    texts = token_texts(byte_level, len(byte_level))
    assert b"".join(texts[token] for token in byte_level(text).input_ids) == text.encode()


def test_special_tokens_and_columns_without_a_token_have_no_text(byte_level):
    texts = token_texts(byte_level, len(byte_level) + 3)
    assert texts[byte_level.eos_token_id] is None
    assert texts[-3:] == [None, None, None]
    assert sum(text is None for text in texts) == 4


def test_output_space_smaller_than_the_vocabulary(byte_level):
    assert len(token_texts(byte_level, 100)) == 100


def test_pieces_bring_their_space_and_bytes_are_bytes():
    inner = Tokenizer(models.Unigram([("▁cat", 0.0), ("s", 0.0), ("<0xC3>", 0.0)]))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert token_texts(PreTrainedTokenizerFast(tokenizer_object=inner), 3) == [b" cat", b"s", b"\xc3"]


def test_words_come_after_a_space(tokenizer):
    assert token_texts(tokenizer, 16)[:4] == [None, None, b" red", b" green"]


def test_tokenizer_that_does_not_tell_its_texts_is_refused():
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        token_texts(object(), 3)


def test_token_that_the_model_lacks_is_named_before_training(byte_level):
    check_tokens("m", byte_level, len(byte_level))
    with pytest.raises(UserError, match=f"m': its tokenizer has {len(byte_level)} tokens, such as 'é!'"):
        check_tokens("m", byte_level, len(byte_level) - 1)


def test_special_token_that_the_model_lacks_is_refused_where_a_text_has_it():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_tokens("m", tokenizer, 1)
    check_known((0,), tokenizer, 1, "a")
    with pytest.raises(UserError, match=r"token .<image>. in .* is unknown to the models, which know 1 tokens"):
        check_known((0, 1), tokenizer, 1, "a <image>")


def test_files_of_a_tokenizer_tell_what_loading_it_would(tmp_path):
    made = bytes_only(special=("<s>",))
    made.save_pretrained(tmp_path)
    rows = len(made)
    check_tokenizer_files(str(tmp_path), rows, chat=False)
    check_tokenizer_files(str(tmp_path), rows - 1, chat=False)  # a special token may be one that nobody reads
    with pytest.raises(UserError, match="no chat template"):
        check_tokenizer_files(str(tmp_path), rows, chat=True)
    made.add_tokens(["<diagnosis>"])
    made.chat_template = "{{ messages[0].content }}"
    made.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{rows + 1} tokens, such as '<diagnosis>', but the model knows only {rows}"):
        check_tokenizer_files(str(tmp_path), rows, chat=False)
    check_tokenizer_files(str(tmp_path), rows + 1, chat=True)
    (tmp_path / "tokenizer.json").write_text("[]")
    check_tokenizer_files(str(tmp_path), 1, chat=True)  # refused when it is loaded
    check_tokenizer_files("of/the-hub", 1, chat=True)
