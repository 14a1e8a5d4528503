"""Which options of PEFT a configuration may set. It comes from another party, and decides what a client sends."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

#: PEFT takes many strings for regular expressions; such a name, taken for one, fits in no time.
_NAME = re.compile(r"[A-Za-z0-9_. -]{1,200}")

#: Largest number in the options of an adapter, and largest scale α: larger ones overflow, or fill any memory.
LARGEST_NUMBER = 1e6

_MORE = "trains more than the adapter's own matrices, and what is trained is sent"
_OTHER = "changes the base model or how fedcollm handles it"
_OBJECT = "can't be written in a configuration"

#: Options of PEFT that no configuration sets, and why.
REFUSED: Mapping[str, str] = {
    "modules_to_save": _MORE,
    "trainable_token_indices": _MORE,
    "bias": _MORE,
    "ensure_weight_tying": _MORE,
    "layer_replication": _OTHER,
    "megatron_core": _OTHER,
    "auto_mapping": _OTHER,
    "base_model_name_or_path": _OTHER,
    "revision": _OTHER,
    "inference_mode": _OTHER,
    "peft_type": _OTHER,
    "peft_version": _OTHER,
    "task_type": _OTHER,
    "alora_invocation_tokens": _OTHER,
}
_DEFAULTS: tuple[object, ...] = (None, False, "none", [], {})  # what these options are without being set


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that train or send more than the adapter's own matrices, and patterns in place of names.

    A pattern can take years on one name, and what it fits can't be seen before the model is there.

    Raises:
        ValueError: says which option, and what to do.
    """
    for name, value in options.items():
        reason = _OBJECT if name.endswith("_config") else REFUSED.get(name)
        if reason is not None and value not in _DEFAULTS:
            raise ValueError(f"{name} {reason}. Remove it")
        if name.endswith("_modules") and isinstance(value, str) and value != "all-linear":
            raise ValueError(f"{name}: {value!r:.60} is a pattern to PEFT. Give a list of names")
        if large := next((one for one in _numbers(value) if not abs(one) <= LARGEST_NUMBER), None):
            raise ValueError(f"{name}: {large!s:.30} is not a number up to {LARGEST_NUMBER:g}")
        for text in _texts(value):
            if not _NAME.fullmatch(text):
                raise ValueError(f"{name}: {text!r:.60} is not a plain name of letters, digits, spaces, _, - and .")


def options_of_size(options: Mapping[str, Any]) -> list[int]:
    """Return the whole numbers in options that are ranks, as `r` and those of `rank_pattern` are."""
    ranks = [value for name, value in options.items() if name in ("r", "rank", "rank_pattern")]
    return [value for value in _numbers(ranks) if isinstance(value, int)]


def check_names(names: list[str]) -> None:
    """Refuse names of modules that are no names.

    Raises:
        ValueError: says which one.
    """
    if wrong := [name for name in names if not _NAME.fullmatch(name)]:
        raise ValueError(f"{wrong[0]!r:.60} is not a plain name of letters, digits, spaces, _, - and .")


def _texts(value: object) -> Iterator[str]:
    """Yield every text in a value of plain types, names of mappings included."""
    return (one for one in _plain(value) if isinstance(one, str))


def _numbers(value: object) -> Iterator[int | float]:
    """Yield every number in a value of plain types; a switch is none."""
    return (one for one in _plain(value) if isinstance(one, (int, float)) and not isinstance(one, bool))


def _plain(value: object) -> Iterator[object]:
    """Yield every single value in one of plain types, names of mappings included."""
    if isinstance(value, Mapping):
        for key, inner in cast(Mapping[object, object], value).items():
            yield key
            yield from _plain(inner)
    elif isinstance(value, (list, tuple)):
        for inner in cast(list[object], value):
            yield from _plain(inner)
    else:
        yield value
