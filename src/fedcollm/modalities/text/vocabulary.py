"""Vocabularies: the text of each token, so that two can be compared, and the tokens that a model lacks."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten

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


def check_tokens(source: str, tokenizer: Any, rows: int) -> None:
    """Refuse a tokenizer with tokens that its model lacks.

    Special tokens are let through, because models come with such ones for what they don't read: Gemma 3 of 270 M has
    one for images. A text that contains one is refused when it is encoded.

    Args:
        source: the source of the model, for the message.
        tokenizer: its tokenizer.
        rows: number of tokens that the model knows.

    Raises:
        UserError: a token that is not special has no row.
    """
    special = {str(token) for token in tokenizer.all_special_tokens}
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    beyond = [token for token, at in tokenizer.get_vocab().items() if at >= rows and token not in special | added]
    if beyond:
        raise UserError(_too_large(source, len(tokenizer), min(beyond), rows))


def _too_large(source: str, count: int, token: str, rows: int) -> str:
    return (
        f"model source {source!r}: its tokenizer has {count} tokens, such as {token!r}, but the model knows only "
        f"{rows}. Enlarge its embeddings (resize_token_embeddings) and save it, or take its own tokenizer."
    )


def check_tokenizer_files(source: str, rows: int, chat: bool) -> None:
    """Refuse what a directory shows of its tokenizer without loading it: tokens that the model lacks, no chat template.

    What is not in the files' usual form is let through; the tokenizer is checked again when it is loaded.

    Args:
        source: the source of the model.
        rows: number of tokens that the model knows.
        chat: whether a chat template is needed.

    Raises:
        UserError: an added token that is not special has no row, or there is no chat template.
    """
    place = Path(source)
    if not (place / "tokenizer.json").is_file():
        return
    try:
        whole: Any = json.loads((place / "tokenizer.json").read_text(encoding="utf-8"))
        added = {str(token["content"]): int(token["id"]) for token in whole["added_tokens"] if not token["special"]}
        count = max([len(whole["model"]["vocab"]), *(at + 1 for at in added.values())])
        settings = place / "tokenizer_config.json"
        named: Any = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        template = named.get("chat_template") or any(place.glob("chat_template*"))
        special = {str(value) for name, value in named.items() if name.endswith("_token")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if beyond := [token for token, at in added.items() if at >= rows and token not in special]:
        raise UserError(_too_large(source, count, min(beyond), rows))
    if chat and not template and not any(place.glob("additional_chat_templates/*")):
        raise UserError(no_template(source))


def no_template(source: str) -> str:
    """Return a message on a tokenizer without a chat template."""
    return (
        f"task.format: the tokenizer of {source or 'the model'} has no chat template, which chat and messages need. "
        "Choose an instruct model, or set task.format.chat: false and write the roles into task.format.prompt."
    )


def check_known(tokens: Sequence[int], tokenizer: Any, rows: int, text: str) -> None:
    """Refuse a text with a token that the models lack.

    Args:
        tokens: the tokens of the text.
        tokenizer: the tokenizer that made them.
        rows: number of tokens that the models know.
        text: the text, for the message.

    Raises:
        UserError: a token is not below `rows`.
    """
    if tokens and (odd := max(tokens)) >= rows:
        raise UserError(
            f"the token {tokenizer.convert_ids_to_tokens(odd)!r} in {shorten(text)} is unknown to the models, which "
            f"know {rows} tokens. Remove it from the text, or enlarge their embeddings."
        )
