"""The text of each token of a vocabulary, in bytes, so that two vocabularies can be compared."""

import json
import re
from collections.abc import Iterator
from typing import Any

from fedcollm.errors import UserError

#: A token for a single byte, which sentencepiece uses for characters without a piece of their own.
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_texts(tokenizer: Any, size: int) -> list[bytes | None]:
    """Return the text that each token adds, including the space before a word.

    Args:
        tokenizer: a fast tokenizer of transformers, which wraps one of the library `tokenizers`.
        size: size of the model's output space, which may be larger than the vocabulary.

    Returns:
        One entry per token id, which is None for special tokens and for ids without a token.

    Raises:
        UserError: the tokenizer is not a fast one, so its decoder is unknown.
    """
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        raise UserError(
            f"{type(tokenizer).__name__}: the tokens of this tokenizer can't be compared with those of another one. "
            "Choose a model with a tokenizer.json."
        )
    kinds = set(_kinds(json.loads(inner.to_str())["decoder"]))
    added = {id: token.special for id, token in tokenizer.added_tokens_decoder.items()}
    texts: list[bytes | None] = [None] * size
    for token, id in tokenizer.get_vocab().items():
        if id < size and not added.get(id, False):
            literal = id in added and "ByteLevel" in kinds
            texts[id] = token.encode() if literal else token_text(token, kinds)
    return texts


def _kinds(decoder: dict[str, Any] | None) -> Iterator[str]:
    """Yield the names of the parts of a tokenizer's decoder."""
    if decoder is not None:
        yield decoder["type"]
        for part in decoder.get("decoders", ()):
            yield from _kinds(part)


def token_text(token: str, kinds: set[str]) -> bytes:
    r"""Return the text of a token in bytes, depending on the kind of its vocabulary.

    Args:
        token: the token as the vocabulary writes it.
        kinds: names of the parts of the tokenizer's decoder; empty for a vocabulary of words, each after a space.

    >>> token_text("ĠcafÃ©", {"ByteLevel"}).decode()
    ' café'
    >>> token_text("▁café", {"Replace", "ByteFallback"}).decode()
    ' café'
    >>> token_text("<0x0A>", {"Replace", "ByteFallback"})
    b'\n'
    >>> token_text("##ology", {"WordPiece"}), token_text("card", {"WordPiece"}), token_text("card", set())
    (b'ology', b' card', b' card')
    """
    if "ByteLevel" in kinds:
        return bytes(_BYTE_OF[character] for character in token)
    if "WordPiece" in kinds:
        return token[2:].encode() if token.startswith("##") else f" {token}".encode()
    if not kinds:
        return f" {token}".encode()
    if "ByteFallback" in kinds and (byte := _BYTE.fullmatch(token)):
        return bytes([int(byte[1], 16)])
    return token.replace("▁", " ").encode()


def _byte_characters() -> dict[str, int]:
    """Return the byte of each printable character of a byte-level vocabulary (Radford et al. 2019, GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_characters()
