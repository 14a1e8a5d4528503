"""The defences: keys of the configuration that a run sets, as `--set` takes them. A new one is a new line here.

`{faulty}` is 1 of 4 clients and 3 of 10, whatever the row: a defender does not know how many are bad. A defence that a
row's number of clients does not allow is recorded as refused.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.robustness.rows import Row

_FAULTY = "federation.faulty"
_RULE = "federation.aggregation"
_DROP: dict[str, Any] = {"federation.max_drop": 0.05}
_CLIP: dict[str, Any] = {"federation.clip_to_median": 1.5}
_CLEAN: dict[str, Any] = {"task.cleaning": {}}
_SCREEN: dict[str, Any] = {"task.cleaning": {"judge": "ngrams_global", "duplicates": "exact"}}
_HELD_OUT: dict[str, Any] = {_RULE: "held_out", "client.held_out": 0.2}
_SECURE: dict[str, Any] = {"federation.secure_aggregation.enabled": True}

DEFENCES: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "median": {_RULE: "median"},
    "trimmed_mean": {_RULE: "trimmed_mean"},
    "geometric_median": {_RULE: "geometric_median"},
    "krum": {_RULE: "krum"},
    "multi_krum": {_RULE: "multi_krum"},
    "bulyan": {_RULE: "bulyan"},
    "trust": {_RULE: "trust"},
    "agreement": {_RULE: "agreement"},
    "fresh_slm": {"server.fresh_slm_epochs": 4},
    "agreement_fresh_slm": {_RULE: "agreement", "server.fresh_slm_epochs": 4},
    "screen_agreement": _SCREEN | {_RULE: "agreement"},
    "held_out": _HELD_OUT,
    "clean": _CLEAN,
    "relabel": {"task.cleaning": {"labels": "relabel"}},
    "clean_slm": {"task.cleaning": {"judge": "ngrams_slm"}},
    "screen": _SCREEN,
    "screen_relabel": {"task.cleaning": {**_SCREEN["task.cleaning"], "labels": "relabel"}},
    "screen_held_out": _SCREEN | _HELD_OUT,
    "screen_trimmed": _SCREEN | {_RULE: "trimmed_mean"},
    "screen_geometric": _SCREEN | {_RULE: "geometric_median"},
    "screen_clip_drop": _SCREEN | _CLIP | _DROP,
    "clean_held_out": _CLEAN | _HELD_OUT,
    "generalized": {"client.loss": "generalized"},
    "symmetric": {"client.loss": "symmetric"},
    "trim": {"client.loss_trim": 0.25},
    "gate": {"server.distillation.gate": "reliability"},
    "clip": _CLIP,
    "drop": _DROP,
    "clip_drop": _CLIP | _DROP,
    "median_drop": {_RULE: "median"} | _DROP,
    "secure": _SECURE,
    "secure_drop": _SECURE | _DROP,
    "secure_clip_drop": _SECURE | _DROP | {"federation.clip_norm": 4.0},
}


def settings(defence: str, row: Row) -> dict[str, Any]:
    """The keys of a defence in a row."""
    return {_FAULTY: 1 if row.clients < 10 else 3, **DEFENCES[defence]}
