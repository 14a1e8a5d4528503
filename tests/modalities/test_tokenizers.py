"""What the identity of a tokenizer depends on."""

import pytest
from tests.modalities.text.byte_pairs import byte_level
from tokenizers import AddedToken

from fedcollm.modalities.tokenizers import tokenizer_digest


def made(**changes):
    tokenizer = byte_level("Paris", special=("<s>", "</s>"), eos="</s>", template="{{ messages }}")
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize(
    "changes",
    [
        {"chat_template": "{{ messages }}!"},
        {"chat_template": {"default": "{{ messages }}"}},
        {"eos_token": "<s>"},
        {"bos_token": "<s>"},
        {"pad_token": "<s>"},
        {"unk_token": "<s>"},
    ],
    ids=str,
)
def test_template_and_special_tokens_count(changes):
    assert tokenizer_digest(made(**changes)) != tokenizer_digest(made())


def test_added_tokens_count_and_names_and_padding_do_not():
    more = made()
    more.add_tokens([AddedToken("<x>", special=True)])
    assert tokenizer_digest(more) != tokenizer_digest(made())
    same = made(name_or_path="/elsewhere", padding_side="left")
    assert tokenizer_digest(same) == tokenizer_digest(made())
