"""Every method, baseline and control of a comparison: each a configuration of the same loop."""

from collections.abc import Callable, Mapping
from typing import Any

from fedcollm.config import RunConfig

#: Where nothing leaves the one place that the data is in, there is nobody to hide it from, and nothing to send.
_ALONE: Mapping[str, Any] = {
    "secure_aggregation": {},
    "privacy": None,
    "upload": "float32",
    "aggregation": "mean",
    "server_optimizer": {},
}

Method = Callable[[RunConfig], dict[str, RunConfig]]


def changed(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """A checked copy with the values of some dotted keys replaced.

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


def fedcollm(config: RunConfig) -> dict[str, RunConfig]:
    """The method itself."""
    return {"": config}


def fedavg(config: RunConfig) -> dict[str, RunConfig]:
    """FedAvg (McMahan et al., arXiv 1602.05629): no distillation."""
    return {"": changed(config, {"server.epochs": 0})}


def fedavg_ce(config: RunConfig) -> dict[str, RunConfig]:
    """FedAvg, and plain cross-entropy on D_a for both roles (λ = 0): what labelled public data gives alone.

    Its LLM is the control "LLM on D_a only": with λ = 0 nothing of the clients reaches it.
    """
    return {"": changed(config, {"server.distillation.weight": 0.0, "server.distillation.llm_weight": 0.0})}


def standalone(config: RunConfig) -> dict[str, RunConfig]:
    """Each client alone: as many runs as clients."""
    alone = changed(config, {"server.epochs": 0} | {f"federation.{key}": value for key, value in _ALONE.items()})
    runs = {}
    for k in range(config.task.clients):
        rank = config.client.rank(k)
        own = {"client.ranks": None if rank is None else [rank], "client.personal": False}
        runs[f"client-{k}"] = changed(alone, {"federation.participants": [str(k)]} | own)
    return runs


def llm2slm(config: RunConfig) -> dict[str, RunConfig]:
    """One-way distillation from the LLM on D_a, no federation."""
    weight = config.server.distillation.weight or 1.0
    one_way = {"server.distillation.weight": weight, "server.distillation.llm_weight": 0.0}
    return {"": changed(config, one_way | {"federation.participants": [], "federation.privacy": None})}


def _pooled(config: RunConfig, with_public: bool) -> RunConfig:
    values = {"server.epochs": 0, "task.partition.kind": "pooled", "task.partition.with_public": with_public}
    values |= {"client.ranks": None, "client.personal": False}
    return changed(config, values | {f"federation.{key}": value for key, value in _ALONE.items()})


def centralized(config: RunConfig) -> dict[str, RunConfig]:
    """The SLM tuned on all private data in one place."""
    return {"": _pooled(config, with_public=False)}


def centralized_llm(config: RunConfig) -> dict[str, RunConfig]:
    """The LLM tuned on all private data and the labelled part of D_a in one place, with the server's learning rate."""
    server = {f"client.{key}": getattr(config.server, key) for key in ("learning_rate", "batch_size")}
    return {"": changed(_pooled(config, with_public=True), {"slm": config.llm.model_dump()} | server)}


#: The paper's table and the controls that it lacks, in the order of ours.
PAPER: Mapping[str, Method] = {
    method.__name__: method
    for method in (standalone, fedavg, fedavg_ce, llm2slm, fedcollm, centralized, centralized_llm)
}

#: Ablations from FedCoLLM: name to the keys that it changes. Sources are at the functions that they switch on.
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "labelled_only": {"task.unlabelled_size": 0},
    "one_way": {"server.distillation.llm_weight": 0.0},
    "half_weight": {"server.distillation.weight": 0.5},
    "warm": {"server.distillation.temperature": 2.0},
    "reverse_kl": {"server.distillation.divergence": "reverse_kl"},
    "jensen_shannon": {"server.distillation.divergence": "jensen_shannon"},
    "skew_kl": {"server.distillation.divergence": "skew_kl"},
    "skew_reverse_kl": {"server.distillation.divergence": "skew_reverse_kl"},
    "teach_where_better": {"server.distillation.teach_where_better": True},
    "warmup": {"server.distillation.warmup_rounds": 4},
    "layer_transfer": {"server.layer_transfer": 1.0},
    "fedprox": {"client.proximal": 0.01},
    "clipped": {"client.max_grad_norm": 1.0, "server.max_grad_norm": 1.0},
    "fedavgm": {"federation.server_optimizer.kind": "fedavgm", "federation.server_optimizer.momentum": 0.5},
    "fedadam": {"federation.server_optimizer.kind": "fedadam", "federation.server_optimizer.learning_rate": 0.01},
    "ffa_lora": {"slm.adapter.freeze_a": True},
    "one_way_layer_transfer": {"server.distillation.llm_weight": 0.0, "server.layer_transfer": 0.5},
    "fedcollm_plus": {"server.distillation.teach_where_better": True, "federation.aggregation": "product"},
    "fedcollm_plus_secure": {
        "server.distillation.teach_where_better": True,
        "federation.server_optimizer.kind": "fedavgm",
        "federation.server_optimizer.momentum": 0.5,
    },
    "product": {"federation.aggregation": "product"},
    "half_upload": {"federation.upload": "bfloat16"},
}


def _ablation(name: str) -> Method:
    return lambda config: {"": changed(config, ABLATIONS[name])}


METHODS: Mapping[str, Method] = {**PAPER, **{name: _ablation(name) for name in ABLATIONS}}

#: What a reader calls them.
NAMES: Mapping[str, str] = {
    "standalone": "standalone (mean of clients)",
    "fedavg": "FedAvg",
    "fedavg_ce": "FedAvg + CE on D_a (LLM: D_a only)",
    "llm2slm": "LLM2SLM (one-way, no federation)",
    "fedcollm": "FedCoLLM",
    "centralized": "centralized SLM (private data)",
    "centralized_llm": "centralized LLM (private + D_a)",
    "labelled_only": "FedCoLLM, labelled public data only",
    "one_way": "FedCoLLM, LLM → SLM only",
    "half_weight": "FedCoLLM, λ = 0.5",
    "warm": "FedCoLLM, τ = 2",
    "reverse_kl": "FedCoLLM, reverse KL",
    "jensen_shannon": "FedCoLLM, Jensen–Shannon",
    "skew_kl": "FedCoLLM, skew KL",
    "skew_reverse_kl": "FedCoLLM, skew reverse KL",
    "teach_where_better": "FedCoLLM, teach_where_better",
    "warmup": "FedCoLLM, λ ramped",
    "layer_transfer": "FedCoLLM, layer_transfer",
    "fedprox": "FedCoLLM, FedProx clients",
    "clipped": "FedCoLLM, clipped gradients",
    "fedavgm": "FedCoLLM, FedAvgM server",
    "fedadam": "FedCoLLM, FedAdam server",
    "ffa_lora": "FedCoLLM, FFA-LoRA",
    "one_way_layer_transfer": "FedCoLLM, LLM → SLM only, half layer_transfer",
    "fedcollm_plus": "FedCoLLM+ (teach_where_better, mean of products)",
    "fedcollm_plus_secure": "FedCoLLM+ for secure aggregation (teach_where_better, server momentum)",
    "product": "FedCoLLM, mean of products",
    "half_upload": "FedCoLLM, 16-bit uploads",
}
