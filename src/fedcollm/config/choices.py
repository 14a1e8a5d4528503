"""Every choice that a configuration offers by name: one table per choice.

Whatever speaks of a choice takes it from here: the configuration's check, the comments of `fedcollm init`, the methods
of `fedcollm compare` and the words of the report. Adding one takes a row here and a function of the same name in the
module that does the work (`docs/decisions/0010-choices.md`). Nothing here imports torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Choice:
    """One name that a key can have.

    Attributes:
        comment: what it does, for `fedcollm init`.
        label: what tables call FedCoLLM with it; empty for the default, which has no method of its own.
        phrase: how the report says that a run used it; empty for the default.
        beside: other keys that `fedcollm compare` sets with it, relative to the choice's section.
        single_updates: whether the server must see each client's update, which secure aggregation hides.
        plain_lora: whether it takes LoRA's A and B apart, and so works on no other adapter.
        weighted: whether clients count by their number of examples.
    """

    comment: str
    label: str = ""
    phrase: str = ""
    beside: Mapping[str, Any] = field(default_factory=dict)
    single_updates: bool = False
    plain_lora: bool = False
    weighted: bool = False


#: `server.distillation.divergence`; functions in `training/divergences.py`.
DIVERGENCES: Mapping[str, Choice] = {
    "forward_kl": Choice("KL(teacher ‖ student), the paper's"),
    "reverse_kl": Choice("KL(student ‖ teacher)", "reverse KL", "the reverse KL divergence"),
    "jensen_shannon": Choice("the Jensen–Shannon divergence", "Jensen–Shannon", "the Jensen–Shannon divergence"),
    "skew_kl": Choice("KL to a mixture (DistiLLM)", "skew KL", "the skewed KL divergence"),
    "skew_reverse_kl": Choice(
        "reverse KL to a mixture (DistiLLM)", "skew reverse KL", "the skewed reverse KL divergence"
    ),
}

#: `federation.aggregation`; rules in `federation/aggregation/rules.py`.
AGGREGATIONS: Mapping[str, Choice] = {
    "mean": Choice("weighted by number of examples", phrase="weighted by number of examples", weighted=True),
    "uniform": Choice("the paper's 1/K", phrase="with equal weights"),
    "product": Choice(
        "weighted, of LoRA's products B A",
        "mean of products",
        "as LoRA’s products B A, weighted by number of examples",
        single_updates=True,
        plain_lora=True,
        weighted=True,
    ),
}

#: `federation.server_optimizer.kind`; functions in `federation/server_optimizers.py`.
SERVER_OPTIMIZERS: Mapping[str, Choice] = {
    "average": Choice("take the mean change as it is (FedAvg)"),
    "fedavgm": Choice("with momentum", "FedAvgM server", "FedAvgM", {"momentum": 0.5}),
    "fedadam": Choice("as Adam would", "FedAdam server", "FedAdam", {"learning_rate": 0.01}),
}

#: `client.schedule` and `server.schedule`; by transformers' `get_scheduler`, see `training/optimizers.py`.
SCHEDULES: Mapping[str, Choice] = {
    "constant": Choice("after the warm-up, the learning rate stays"),
    "linear": Choice("it falls linearly to 0", "linear schedule", "a learning rate that falls linearly to 0"),
}

#: Key of the configuration, its leaf, to its table: the same name has the same table wherever it stands.
TABLES: Mapping[str, Mapping[str, Choice]] = {
    "divergence": DIVERGENCES,
    "aggregation": AGGREGATIONS,
    "kind": SERVER_OPTIMIZERS,
    "schedule": SCHEDULES,
}

#: Where `fedcollm compare` sets a choice: one section, or several at once.
_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "divergence": ("server.distillation",),
    "aggregation": ("federation",),
    "kind": ("federation.server_optimizer",),
    "schedule": ("client", "server"),
}


def comment(key: str) -> str:
    """Return the comment of a key that is a choice: every name with what it does.

    >>> comment("kind")
    'average: take the mean change as it is (FedAvg); fedavgm: with momentum; fedadam: as Adam would'
    """
    return "; ".join(f"{name}: {choice.comment}" for name, choice in TABLES[key].items())


def ablations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield a method per choice that is no default: its name, its label, and the dotted keys that it sets."""
    for key, table in TABLES.items():
        for name, choice in table.items():
            if choice.label:
                values = {key: name, **choice.beside}
                yield (
                    name,
                    f"FedCoLLM, {choice.label}",
                    {f"{section}.{leaf}": value for section in _SECTIONS[key] for leaf, value in values.items()},
                )
