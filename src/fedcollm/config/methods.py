"""The methods, baselines and controls of a comparison, each of which is a configuration of the same loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import ValidationError

from fedcollm.config import FederationConfig, HealingConfig, RunConfig, TrainingConfig, rules
from fedcollm.config.choices import ablations

#: Settings of `federation` for a run with a single data holder, which sends nothing and hides nothing.
_ALONE: Mapping[str, Any] = {
    "secure_aggregation": {},
    "privacy": None,
    "upload": "float32",
    "aggregation": "mean",
    "server_optimizer": {},
    "min_clients": 1,
}

Configure = Callable[[RunConfig], dict[str, RunConfig]]


@dataclass(frozen=True)
class Method:
    """One row of a comparison table.

    Attributes:
        label: name of the method for readers.
        configure: returns the configurations of the method's runs by name, given the base configuration; most methods
            have a single run, whose name is "".
        changes: the dotted keys that the method sets, if it is an ablation of FedCoLLM; otherwise empty.
    """

    label: str
    configure: Configure
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def description(self) -> str:
        """One-line description of the method."""
        if self.changes:
            return f"{self.label}: " + ", ".join(f"{key} = {value}" for key, value in self.changes.items())
        return (self.configure.__doc__ or self.label).strip().splitlines()[0]


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
        section[last] = value
    return RunConfig.model_validate(tree)


def _trained(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return the same as `changed`, for a method that trains, whatever the base configuration does instead."""
    return changed(config, {"control": None, **values})


def _baseline(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return the same as `_trained`, for a method that has no statistics of the clients."""
    return _trained(config, {"server.pseudo_labels": None, **values})


def fedcollm(config: RunConfig) -> dict[str, RunConfig]:
    """The method itself, as configured."""
    return {"": _trained(config, {})}


def fedavg(config: RunConfig) -> dict[str, RunConfig]:
    """FedAvg (McMahan et al., arXiv 1602.05629), without distillation."""
    return {"": _baseline(config, {"server.epochs": 0})}


def fedavg_ce(config: RunConfig) -> dict[str, RunConfig]:
    """FedAvg plus cross-entropy on D_a for both models (λ = 0), which measures what labelled public data alone gives.

    Its LLM is the control "LLM on D_a only", because with λ = 0 it learns nothing from the clients.
    """
    return {"": _baseline(config, {"server.distillation.weight": 0.0, "server.distillation.llm_weight": 0.0})}


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


def standalone(config: RunConfig) -> dict[str, RunConfig]:
    """Each client trains alone, in one run per client."""
    alone = _baseline(config, {"server.epochs": 0} | {f"federation.{key}": value for key, value in _ALONE.items()})
    runs: dict[str, RunConfig] = {}
    for k in range(config.task.clients):
        rank = config.client.rank(k)
        own = {"client.ranks": None if rank is None else [rank], "client.personal": False}
        runs[f"client-{k}"] = changed(alone, {"federation.participants": [str(k)]} | own)
    return runs


def llm2slm(config: RunConfig) -> dict[str, RunConfig]:
    """One-way distillation from the LLM to the SLM on D_a, without federation."""
    weight = config.server.distillation.weight or 1.0
    one_way = {"server.distillation.weight": weight, "server.distillation.llm_weight": 0.0}
    return {"": _baseline(config, one_way | {"federation.participants": [], "federation.privacy": None})}


def _pooled(config: RunConfig, with_public: bool) -> RunConfig:
    values = {"server.epochs": 0, "task.partition.kind": "pooled", "task.partition.with_public": with_public}
    values |= {"client.ranks": None, "client.personal": False}
    return _baseline(config, values | {f"federation.{key}": value for key, value in _ALONE.items()})


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
        "secure_aggregation.value_range": max(secure.value_range, 1.0),
    }
    values = {f"federation.{key}": value for key, value in values.items()}
    values |= {"server.epochs": 0, "server.pseudo_labels": None, "client.ranks": None, "client.personal": False}
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
    alone = {f"federation.{key}": value for key, value in _ALONE.items()}
    return {"": changed(_control(config, "ngrams"), alone | {"federation.participants": []})}


#: Controls without federated co-tuning, which are solved in closed form, in the order of our tables.
CONTROLS: Mapping[str, Method] = {
    "majority": Method("majority label", majority),
    "closed_form_public": Method("no neural network (ridge, D_a only)", closed_form_public),
    "closed_form": Method("no neural network (ridge, sums over clients)", closed_form),
    "closed_form_slm": Method("frozen SLM (ridge, sums over clients)", closed_form_slm),
    "closed_form_both": Method("n-grams and frozen SLM (ridge, sums over clients)", closed_form_both),
}

#: The methods of the paper's table and the controls that it lacks, in the order of our tables.
PAPER: Mapping[str, Method] = {
    "majority": CONTROLS["majority"],
    "closed_form": CONTROLS["closed_form"],
    "standalone": Method("standalone (mean of clients)", standalone),
    "fedavg": Method("FedAvg", fedavg),
    "fedavg_ce": Method("FedAvg + CE on D_a (LLM: D_a only)", fedavg_ce),
    "llm2slm": Method("LLM2SLM (one-way, no federation)", llm2slm),
    "fedcollm": Method("FedCoLLM", fedcollm),
    "centralized": Method("centralized SLM (private data)", centralized),
    "centralized_llm": Method("centralized LLM (private + D_a)", centralized_llm),
}

#: Further controls, which are not in the default set of a comparison.
FURTHER: Mapping[str, Method] = {
    "fedavg_ce_labelled": Method("FedAvg + CE on labelled D_a (LLM: labelled D_a only)", fedavg_ce_labelled),
    "fedavg_ce_text": Method("FedAvg + CE on labelled D_a, LLM first trained on the healing text", fedavg_ce_text),
}

_BETTER = {"server.distillation.teach_where_better": True}
_TRANSFER = {"server.layer_transfer": 1.0}
_PRODUCT = {"federation.aggregation": "product"}
_MOMENTUM = {"federation.server_optimizer.kind": "fedavgm", "federation.server_optimizer.momentum": 0.5}
_CLIPPED = {"client.max_grad_norm": 1.0, "server.max_grad_norm": 1.0}
_LABELS = {"server.pseudo_labels": {"features": "ngrams_slm", "ridge": 0.06}}
_WHOLE = _BETTER | _CLIPPED | _LABELS | _TRANSFER
_NO_KL = {"server.distillation.weight": 0.0, "server.distillation.llm_weight": 0.0}

#: Name of a form of FedCoLLM+ to its label and to what it changes; see `_plus`.
_PLUS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "fedcollm_plus": ("FedCoLLM+", _WHOLE),
    "plus_without_labels": ("FedCoLLM+ without pseudo-labels", _BETTER | _CLIPPED | _TRANSFER),
    "plus_without_models": (
        "FedCoLLM+, pseudo-labels by the regression alone",
        _WHOLE | {"server.pseudo_labels": _LABELS["server.pseudo_labels"] | {"with_models": False}},
    ),
    "plus_without_transfer": ("FedCoLLM+ without layer transfer", _BETTER | _CLIPPED | _LABELS),
    "plus_with_product": (
        "FedCoLLM+, mean of products in place of layer transfer",
        _BETTER | _CLIPPED | _LABELS | _PRODUCT,
    ),
    "plus_without_gate": ("FedCoLLM+, teaching everywhere", _CLIPPED | _LABELS | _TRANSFER),
    "plus_without_clipping": ("FedCoLLM+ without clipping", _WHOLE | dict.fromkeys(_CLIPPED, None)),
    "plus_without_kl": ("FedCoLLM+ without distillation (λ = 0)", _CLIPPED | _LABELS | _TRANSFER | _NO_KL),
}

#: Ablations that are not an option in `choices.py`: name to label and changed keys.
_ABLATIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "labelled_only": ("FedCoLLM, labelled public data only", {"task.unlabelled_size": 0}),
    "one_way": ("FedCoLLM, LLM → SLM only", {"server.distillation.llm_weight": 0.0}),
    "half_weight": ("FedCoLLM, λ = 0.5", {"server.distillation.weight": 0.5}),
    "warm": ("FedCoLLM, τ = 2", {"server.distillation.temperature": 2.0}),
    "teach_where_better": ("FedCoLLM, teaching where better", _BETTER),
    "warmup": ("FedCoLLM, λ grows over 4 rounds", {"server.distillation.warmup_rounds": 4}),
    "layer_transfer": ("FedCoLLM, layer transfer", {"server.layer_transfer": 1.0}),
    "fedprox": ("FedCoLLM, FedProx clients", {"client.proximal": 0.01}),
    "clipped": ("FedCoLLM, clipped gradients", _CLIPPED),
    "even_labels": ("FedCoLLM, even share of labels per batch", {"server.even_labels": True}),
    "pseudo_labels": ("FedCoLLM, pseudo-labels from secure sums", _LABELS),
    "unhealed": ("FedCoLLM, SLM not healed", {"slm.heal": None}),
    "ffa_lora": ("FedCoLLM, FFA-LoRA", {"slm.adapter.freeze_a": True}),
    "one_way_layer_transfer": (
        "FedCoLLM, LLM → SLM only, half layer transfer",
        {"server.distillation.llm_weight": 0.0, "server.layer_transfer": 0.5},
    ),
    "half_upload": ("FedCoLLM, 16-bit uploads", {"federation.upload": "bfloat16"}),
}


def _ablation(label: str, changes: Mapping[str, Any]) -> Method:
    return Method(label, lambda config: {"": _trained(config, changes)}, changes)


def _plus(changes: Mapping[str, Any], config: RunConfig) -> dict[str, RunConfig]:
    """Return a form of FedCoLLM+, without the parts that a configuration has no use for.

    Without unlabelled public examples, or with free answers, there are no pseudo-labels. If the SLM does not consist of
    the LLM's layers, nothing can be transferred: products of LoRA are averaged instead, or, if the server sees only
    sums, there is server momentum.
    """
    values = dict(changes)
    if not config.task.unlabelled_size or (config.task.format is not None and config.task.format.choices is None):
        values.pop("server.pseudo_labels", None)
    if "server.layer_transfer" in values and not rules.transferable(config):
        del values["server.layer_transfer"]
        sums_only = config.federation.secure_aggregation.enabled or config.federation.privacy is not None
        values |= _MOMENTUM if sums_only else _PRODUCT
    return {"": _baseline(config, values)}


#: Every method of `fedcollm compare`, in the order of its tables. Labelled options of `choices.py` are methods too.
METHODS: Mapping[str, Method] = {
    **CONTROLS,
    **PAPER,
    **FURTHER,
    **{name: _ablation(*row) for name, row in _ABLATIONS.items()},
    **{name: Method(label, partial(_plus, changes), changes) for name, (label, changes) in _PLUS.items()},
    **{name: _ablation(label, changes) for name, label, changes in ablations()},
}


def fits(name: str, config: RunConfig) -> bool:
    """Return whether a method can be derived from a configuration."""
    try:
        METHODS[name].configure(config)
    except ValidationError:
        return False
    return True
