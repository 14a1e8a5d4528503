"""The identity of a tokenizer, for cache keys and for the record of what a run was made of."""

import hashlib
import json
from typing import Any

#: What an added token says of how it is found in texts.
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest of how a tokenizer of transformers makes tokens of texts and of conversations.

    Its name and place do not count, nor do padding and truncation, which each call sets anew. What counts is how it
    cuts texts (of a tokenizer that is not a fast one, only its vocabulary), its special and added tokens, which begin
    and end texts, and its chat template.
    """
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        cuts: dict[str, Any] = {"vocabulary": tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None}
    else:
        cuts = {**json.loads(inner.to_str()), "padding": None, "truncation": None}
    said = {
        "cuts": cuts,
        "special": getattr(tokenizer, "special_tokens_map", None),
        "added": {id: _token(token) for id, token in getattr(tokenizer, "added_tokens_decoder", {}).items()},
        "chat_template": getattr(tokenizer, "chat_template", None),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode("utf-8", "surrogatepass")).hexdigest()


def _token(token: Any) -> list[Any]:
    """Return the text of an added token, and how it is found in texts."""
    return [str(token), *(bool(getattr(token, flag, False)) for flag in _FLAGS)]
