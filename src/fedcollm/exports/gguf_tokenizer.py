"""A tokenizer of transformers in the form that llama.cpp reads: byte-level pairs, or sentencepiece's."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import gguf

from fedcollm.errors import UserError
from fedcollm.models.pretrained import start_tokens

#: What splits a text before its pieces are merged, in words, to llama.cpp's name of it (`tokenizer.ggml.pre`).
PRE_TOKENIZERS: Mapping[str, str] = {
    "bytes": "gpt-2",
    "digits bytes": "smollm",
    "numbers of 1 raw bytes": "qwen2",
    "numbers of 3 raw bytes": "llama-bpe",
}

#: llama.cpp's kinds of tokens.
_KINDS = gguf.TokenType


class Vocabulary(NamedTuple):
    """The tokens of a tokenizer, in the order of their numbers.

    Attributes:
        tokens: their texts.
        kinds: llama.cpp's kind of each.
        scores: how soon each is merged, for sentencepiece; empty for byte-level pairs.
        merges: the pairs that are merged, in their order.
        model: `gpt2` for byte-level pairs, `llama` for sentencepiece.
        pre: llama.cpp's name of what splits a text.
    """

    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str]
    model: str
    pre: str


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """Return the tokens of a tokenizer, and as many unused ones as the model has further columns.

    Args:
        tokenizer: a fast tokenizer of transformers.
        size: number of rows of the model's embedding.

    Raises:
        UserError: the tokenizer is of a kind that llama.cpp does not know.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise _unknown("it has no tokenizer.json")
    parts: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model: dict[str, Any] = parts["model"]
    if model.get("type") != "BPE":
        raise _unknown(f"it is of the type {model.get('type')}")
    of_bytes = not model.get("byte_fallback")
    pre = PRE_TOKENIZERS.get(_splits(parts)) if of_bytes else "default"
    if pre is None:
        raise _unknown("it splits texts in a way of its own")
    added: dict[int, dict[str, Any]] = {token["id"]: token for token in parts["added_tokens"]}
    names = {number: token for token, number in cast("dict[str, int]", model["vocab"]).items()}
    names |= {number: token["content"] for number, token in added.items()}
    tokens = [names.get(i, f"[PAD{i}]") for i in range(size)]
    kinds = [_kind(i, names, added, tokenizer.unk_token_id if not of_bytes else None) for i in range(size)]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in cast("list[Any]", model["merges"])]
    scores = [] if of_bytes else _scores(tokens, merges)
    return Vocabulary(tokens, kinds, scores, merges if of_bytes else [], "gpt2" if of_bytes else "llama", pre)


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Return how soon each token is merged: minus the place of the first pair that gives it.

    >>> _scores(["a", "b", "ab", "bb"], ["b b", "a b"])
    [0.0, 0.0, -1.0, -0.0]
    """
    places: dict[str, int] = {}
    for place, pair in enumerate(merges):
        places.setdefault(pair.replace(" ", "", 1), place)
    return [-float(places.get(token, 0)) if token in places else 0.0 for token in tokens]


def _kind(number: int, names: Mapping[int, str], added: Mapping[int, Mapping[str, Any]], unknown: int | None) -> int:
    if number not in names:
        return _KINDS.UNUSED
    if number == unknown:
        return _KINDS.UNKNOWN
    if number in added:
        return _KINDS.CONTROL if added[number]["special"] else _KINDS.USER_DEFINED
    is_byte = unknown is not None and len(names[number]) == 6 and names[number].startswith("<0x")
    return _KINDS.BYTE if is_byte else _KINDS.NORMAL


def _splits(parts: Mapping[str, Any]) -> str:
    """Return in words what splits a text before its pieces are merged, as the keys of `PRE_TOKENIZERS` have it."""
    pre: dict[str, Any] = parts["pre_tokenizer"] or {}
    steps: list[dict[str, Any]] = pre.get("pretokenizers", [pre])
    return " ".join(_step(step) for step in steps)


def _step(step: Mapping[str, Any]) -> str:
    if step.get("type") == "ByteLevel" and not step.get("add_prefix_space"):
        return "bytes" if step.get("use_regex", True) else "raw bytes"
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return "digits"
    pattern = str(cast("dict[str, Any]", step.get("pattern") or {}).get("Regex", ""))
    if step.get("type") == "Split" and pattern.startswith("(?i:'s|'t|'re|'ve|'m|'ll|'d)|"):
        return "numbers of 3" if r"\p{N}{1,3}" in pattern else "numbers of 1"
    return "?"


def _unknown(why: str) -> UserError:
    return UserError(
        f"--format gguf: llama.cpp does not know this tokenizer: {why}. Known are byte-level pairs as in "
        f"GPT-2, SmolLM, Qwen2 and Llama 3, and sentencepiece's as in Llama 2 and Gemma. Use --format merged or onnx."
    )


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    """Write a tokenizer with its special tokens and its chat template.

    Raises:
        UserError: the tokenizer is of a kind that llama.cpp does not know.
    """
    found = vocabulary_of(tokenizer, size)
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    if found.scores:
        writer.add_token_scores(found.scores)
    writer.add_token_types(found.kinds)
    if found.merges:
        writer.add_token_merges(found.merges)
    for token, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(bool(start_tokens(tokenizer)))
    writer.add_add_space_prefix(bool(found.scores) and _adds_space(tokenizer))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _adds_space(tokenizer: Any) -> bool:
    """Return whether a space is put before every text, as in Llama 2 and not in Gemma."""
    parts: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    before: dict[str, Any] = parts["pre_tokenizer"] or {}
    return '"Prepend"' in json.dumps(parts["normalizer"]) or before.get("prepend_scheme") in ("always", "first")
