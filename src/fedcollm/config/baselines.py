"""The baselines and the controls of a comparison: functions from a configuration to those of a method's runs.

`methods.py` has the table of all methods. Each function's docstring is what `fedcollm compare` says of it.
"""

import copy
from collections.abc import Mapping
from typing import Any

from fedcollm.config import FederationConfig, HealingConfig, RunConfig, TrainingConfig

#: Settings for a run with a single data holder, which sends nothing and hides nothing.
ALONE: Mapping[str, Any] = {
    "federation.secure_aggregation": {},
    "federation.privacy": None,
    "federation.upload": "float32",
    "federation.download": "float32",
    "federation.aggregation": "mean",
    "client.held_out": 0.0,
    "federation.clip_to_median": None,
    "federation.max_drop": None,
    "federation.server_optimizer": {},
    "federation.min_clients": 1,
}


#: Settings for a run of the server alone.
NO_CLIENTS: Mapping[str, Any] = {**ALONE, "federation.participants": []}


def changed(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return a validated copy of a configuration in which some dotted keys have new values.

    >>> changed(RunConfig(), {"server.distillation.weight": 0.5}).server.distillation.weight
    0.5
    """
    tree = config.model_dump()
    for key, value in values.items():
        *sections, last = key.split(".")
        section = tree
        for name in sections:
            section = section[name]
        section[last] = copy.deepcopy(value)  # a later key may set something within it
    return RunConfig.model_validate(tree)


def trained(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return the same as `changed`, for a method that trains, whatever the base configuration does instead."""
    return changed(config, {"control": None, **values})


def baseline(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return the same as `trained`, for a method that has no statistics of the clients."""
    return trained(config, {"server.pseudo_labels": None, **values})


def fedcollm(config: RunConfig) -> dict[str, RunConfig]:
    """The method itself, as configured."""
    return {"": trained(config, {})}


def fedavg(config: RunConfig) -> dict[str, RunConfig]:
    """FedAvg (McMahan et al., arXiv 1602.05629), without distillation."""
    return {"": baseline(config, {"server.epochs": 0})}


def fedavg_ce(config: RunConfig) -> dict[str, RunConfig]:
    """FedAvg plus cross-entropy on D_a for both models (λ = 0), which measures what labelled public data alone gives.

    Its LLM is the control "LLM on D_a only", because with λ = 0 it learns nothing from the clients.
    """
    return {"": baseline(config, {"server.distillation.weight": 0.0, "server.distillation.llm_weight": 0.0})}


def fedavg_ce_labelled(config: RunConfig) -> dict[str, RunConfig]:
    """The same control without the unlabelled examples, which cross-entropy can't use: whole batches of labelled ones.

    It takes fewer steps. Where D_a has many unlabelled examples, a batch of `fedavg_ce` has few labels, and is noisy.
    """
    return {"": changed(fedavg_ce(config)[""], {"server.unlabelled_per_round": 0})}


def fedavg_ce_text(config: RunConfig) -> dict[str, RunConfig]:
    """The same control with an LLM that was first trained on the text that the SLM was healed on: is it the text?

    All of the LLM's weights but its embedding learn to predict the text, at an eighth of the healing's learning rate.
    """
    heal = config.slm.heal or HealingConfig()
    rate = heal.learning_rate / 8
    text = heal.model_copy(update={"objective": "next_token", "learning_rate": rate})
    return {"": changed(fedavg_ce_labelled(config)[""], {"llm.heal": text.model_dump()})}


def no_clients(config: RunConfig) -> dict[str, RunConfig]:
    """FedCoLLM without any client: both models teach each other on D_a. What is above it comes from the clients."""
    return {"": baseline(config, NO_CLIENTS)}


def standalone(config: RunConfig) -> dict[str, RunConfig]:
    """Each client trains alone, in one run per client."""
    alone = baseline(config, {"server.epochs": 0, **ALONE})
    runs: dict[str, RunConfig] = {}
    for k in range(config.task.clients or 0):  # only the data says how many: see `runs.resolve`
        rank = config.client.rank(k)
        own = {"client.ranks": None if rank is None else [rank], "client.personal": False}
        runs[f"client-{k}"] = changed(alone, {"federation.participants": [str(k)]} | own)
    return runs


def llm2slm(config: RunConfig) -> dict[str, RunConfig]:
    """One-way distillation from the LLM to the SLM on D_a, without federation."""
    weight = config.server.distillation.weight or 1.0
    one_way = {"server.distillation.weight": weight, "server.distillation.llm_weight": 0.0}
    return {"": baseline(config, one_way | {"federation.participants": [], "federation.privacy": None})}


def _pooled(config: RunConfig, with_public: bool) -> RunConfig:
    values = {"server.epochs": 0, "task.partition.kind": "pooled", "task.partition.with_public": with_public}
    values |= {"client.ranks": None, "client.personal": False}
    return baseline(config, values | dict(ALONE))


def centralized(config: RunConfig) -> dict[str, RunConfig]:
    """The SLM trained on all private data in one place."""
    return {"": _pooled(config, with_public=False)}


def centralized_llm(config: RunConfig) -> dict[str, RunConfig]:
    """The LLM trained on all private data and labelled D_a in one place, with the server's optimizer settings."""
    keys = TrainingConfig.model_fields.keys() - {"epochs"}
    server = {f"client.{key}": getattr(config.server, key) for key in keys}
    return {"": changed(_pooled(config, with_public=True), {"slm": config.llm.model_dump()} | server)}


def _control(config: RunConfig, features: str, ridge: float = 0.3) -> RunConfig:
    """Return the configuration of a control: every client is asked once, and nothing is trained."""
    federation = config.federation
    secure = federation.secure_aggregation
    values: dict[str, Any] = {
        "aggregation": "mean" if federation.weighted else "uniform",
        "rounds": 1,
        "fraction": 1.0,
        "upload": "float32",
        "server_optimizer": {},
        "max_update_norm": FederationConfig().max_update_norm,
        "secure_aggregation.threshold": secure.threshold if federation.fraction == 1 else None,
        "secure_aggregation.value_range": secure.value_range and max(secure.value_range, 1.0),
    }
    values = {f"federation.{key}": value for key, value in values.items()}
    values |= {"server.epochs": 0, "server.pseudo_labels": None, "client.ranks": None, "client.personal": False}
    values |= {"client.held_out": 0.0}
    return changed(config, values | {"control": {"features": features, "ridge": ridge}})


def majority(config: RunConfig) -> dict[str, RunConfig]:
    """The label that is most frequent among all labelled examples or, for choices of their own, the right one's place.

    Whatever is not above it has learned nothing from the inputs.
    """
    return {"": _control(config, "constant")}


def closed_form(config: RunConfig) -> dict[str, RunConfig]:
    """Ridge regression on hashed n-grams (images: pixels), from sums over the clients and the labelled part of D_a.

    It uses no neural network. Clients send d (d + 1) / 2 + d C numbers once, for d features and C labels.
    """
    return {"": _control(config, "ngrams")}


def closed_form_slm(config: RunConfig) -> dict[str, RunConfig]:
    """Ridge regression on the frozen SLM's last hidden state, from sums over the clients and the labelled D_a."""
    return {"": _control(config, "slm", 0.03)}


def closed_form_both(config: RunConfig) -> dict[str, RunConfig]:
    """Ridge regression on n-grams (images: pixels) and the frozen SLM's last hidden state, side by side."""
    return {"": _control(config, "ngrams_slm", 0.06)}


def closed_form_public(config: RunConfig) -> dict[str, RunConfig]:
    """Ridge regression on hashed n-grams (images: pixels) of the labelled part of D_a alone, without any client."""
    return {"": changed(_control(config, "ngrams"), NO_CLIENTS)}
