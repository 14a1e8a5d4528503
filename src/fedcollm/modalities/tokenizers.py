"""The identity of a tokenizer, for cache keys and for the record of what a run was made of."""

import hashlib
import json
from typing import Any


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest of how a tokenizer of transformers cuts texts, which its name and place do not change.

    Padding and truncation do not count: they are set anew by each call. Of a tokenizer that is not a fast one, only the
    vocabulary counts.
    """
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        said: dict[str, Any] = {"vocabulary": tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None}
    else:
        said = {**json.loads(inner.to_str()), "padding": None, "truncation": None}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
