"""The methods, baselines and controls of a comparison, each of which is a configuration of the same loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import ValidationError

from fedcollm.config import RunConfig, baselines, rules
from fedcollm.config.baselines import NO_CLIENTS, baseline, trained
from fedcollm.config.choices import ablations

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


#: Controls without federated co-tuning, which are solved in closed form, in the order of our tables.
CONTROLS: Mapping[str, Method] = {
    "majority": Method("majority label", baselines.majority),
    "closed_form_public": Method("closed form: n-grams, labelled D_a only", baselines.closed_form_public),
    "closed_form": Method("closed form: n-grams", baselines.closed_form),
    "closed_form_slm": Method("closed form: SLM features", baselines.closed_form_slm),
    "closed_form_both": Method("closed form: n-grams and SLM features", baselines.closed_form_both),
}

#: The methods of the paper's table and the controls that it lacks, in the order of our tables.
PAPER: Mapping[str, Method] = {
    "majority": CONTROLS["majority"],
    "closed_form": CONTROLS["closed_form"],
    "standalone": Method("standalone (mean of clients)", baselines.standalone),
    "fedavg": Method("FedAvg", baselines.fedavg),
    "fedavg_ce": Method("FedAvg + CE on D_a (LLM: D_a only)", baselines.fedavg_ce),
    "llm2slm": Method("LLM2SLM (one-way, no federation)", baselines.llm2slm),
    "fedcollm": Method("FedCoLLM", baselines.fedcollm),
    "centralized": Method("centralized SLM (private data)", baselines.centralized),
    "centralized_llm": Method("centralized LLM (private + D_a)", baselines.centralized_llm),
}

#: Further controls, which are not in the default set of a comparison.
FURTHER: Mapping[str, Method] = {
    "fedavg_ce_labelled": Method("FedAvg + CE on labelled D_a (LLM: labelled D_a only)", baselines.fedavg_ce_labelled),
    "fedavg_ce_text": Method(
        "FedAvg + CE on labelled D_a, LLM first trained on the healing text", baselines.fedavg_ce_text
    ),
    "no_clients": Method("FedCoLLM without clients", baselines.no_clients),
}

_BETTER: dict[str, Any] = {"server.distillation.teach_where_better": True}
_TRANSFER = {"server.layer_transfer": 1.0}
_PRODUCT = {"federation.aggregation": "product"}
_MOMENTUM = {"federation.server_optimizer.kind": "fedavgm", "federation.server_optimizer.momentum": 0.5}
_CLIPPED: dict[str, Any] = {"client.max_grad_norm": 1.0, "server.max_grad_norm": 1.0}
_LABELS: dict[str, Any] = {"server.pseudo_labels": {"features": "ngrams_slm", "ridge": 0.06}}
_OWN_LABELS: dict[str, Any] = {"server.pseudo_labels": {"features": "constant", "teachers": ["llm", "slm"]}}
_WHOLE: dict[str, Any] = _BETTER | _CLIPPED | _LABELS | _TRANSFER
_NO_KL = {"server.distillation.weight": 0.0, "server.distillation.llm_weight": 0.0}

#: Name of a form of FedCoLLM+ to its label and to what it changes; see `_plus`.
_PLUS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "fedcollm_plus": ("FedCoLLM+", _WHOLE),
    "plus_without_labels": ("FedCoLLM+ without pseudo-labels", _BETTER | _CLIPPED | _TRANSFER),
    "plus_without_models": (
        "FedCoLLM+, pseudo-labels by the regression alone",
        _WHOLE | {"server.pseudo_labels": _LABELS["server.pseudo_labels"] | {"teachers": ["regression"]}},
    ),
    "plus_without_transfer": ("FedCoLLM+ without layer transfer", _BETTER | _CLIPPED | _LABELS),
    "plus_with_product": (
        "FedCoLLM+, mean of products in place of layer transfer",
        _BETTER | _CLIPPED | _LABELS | _PRODUCT,
    ),
    "plus_without_gate": ("FedCoLLM+, teaching everywhere", _CLIPPED | _LABELS | _TRANSFER),
    "plus_without_clipping": ("FedCoLLM+ without clipping", _WHOLE | dict.fromkeys(_CLIPPED, None)),
    "plus_without_clients": (
        "FedCoLLM+ without clients: both models label D_a themselves",
        _BETTER | _CLIPPED | _OWN_LABELS | dict(NO_CLIENTS),
    ),
    "plus_without_kl": ("FedCoLLM+ without distillation (λ = 0)", _CLIPPED | _LABELS | _TRANSFER | _NO_KL),
}

_CORE: dict[str, Any] = {"slm.adapter.core": True, "slm.adapter.rank": 32}

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
    "core": ("FedCoLLM, cores of 32 x 32", _CORE),
    "one_way_layer_transfer": (
        "FedCoLLM, LLM → SLM only, half layer transfer",
        {"server.distillation.llm_weight": 0.0, "server.layer_transfer": 0.5},
    ),
    "half_upload": ("FedCoLLM, 16-bit uploads", {"federation.upload": "bfloat16"}),
    "upload_8_bits": ("FedCoLLM, 8-bit uploads", {"federation.upload": "int8"}),
    "upload_4_bits": ("FedCoLLM, 4-bit uploads", {"federation.upload": "int4"}),
}


def _ablation(label: str, changes: Mapping[str, Any]) -> Method:
    return Method(label, lambda config: {"": trained(config, changes)}, changes)


def _plus(changes: Mapping[str, Any], config: RunConfig) -> dict[str, RunConfig]:
    """Return a form of FedCoLLM+, without the parts that a configuration has no use for.

    Without unlabelled public examples, or with answers that are no choice (free text, boxes), there are no
    pseudo-labels. If the SLM does not consist of the LLM's layers, nothing can be transferred: products of LoRA are
    averaged instead, or, if the server sees only sums, there is server momentum.
    """
    values = dict(changes)
    if config.task.no_choices is not None or 0 in (config.task.unlabelled_size, config.server.unlabelled_per_round):
        values.pop("server.pseudo_labels", None)
    if "server.layer_transfer" in values and not rules.transferable(config):
        del values["server.layer_transfer"]
        sums_only = config.federation.secure_aggregation.enabled or config.federation.privacy is not None
        values |= _MOMENTUM if sums_only else _PRODUCT
    return {"": baseline(config, values)}


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
