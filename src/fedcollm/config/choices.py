"""The options that a configuration selects by name, one table per key.

The validation of the configuration, the comments of `fedcollm init`, the methods of `fedcollm compare` and the report
all read these tables. To add an option, add a row here and a function of the same name in the module that implements it
(`docs/decisions/0011-choices.md`). This module does not import torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Choice:
    """One option of a key.

    Attributes:
        comment: what the option does, for `fedcollm init`.
        label: name of FedCoLLM with this option in comparison tables; empty for options that are not ablations.
        phrase: how the report says that a run used the option; empty for options that go without saying.
        beside: other keys that `fedcollm compare` sets together with the option, relative to its section.
        single_updates: whether the server needs each client's own update, which secure aggregation hides.
        plain_lora: whether the option treats LoRA's A and B separately, and so works with no other adapter.
        weighted: whether clients are weighted by their number of examples.
        bears: (a, b) if the option bears f faulty clients among at least a f + b; None if it bears none.
        reference: whether the server trains the SLM on labelled public examples, to compare the updates with that.
    """

    comment: str
    label: str = ""
    phrase: str = ""
    beside: Mapping[str, Any] = field(default_factory=dict[str, Any])
    single_updates: bool = False
    plain_lora: bool = False
    weighted: bool = False
    bears: tuple[int, int] | None = None
    reference: bool = False

    def least(self, faulty: int) -> int:
        """Return the smallest number of updates with which the option bears so many faulty clients."""
        return 1 if self.bears is None else self.bears[0] * faulty + self.bears[1]


#: Options of `server.distillation.divergence`; the functions are in `training/divergences.py`.
DIVERGENCES: Mapping[str, Choice] = {
    "forward_kl": Choice("KL(teacher ‖ student), as in the paper"),
    "reverse_kl": Choice("KL(student ‖ teacher)", "reverse KL", "the reverse KL divergence"),
    "jensen_shannon": Choice("Jensen–Shannon divergence", "Jensen–Shannon", "the Jensen–Shannon divergence"),
    "skew_kl": Choice("KL to a mixture of both (DistiLLM)", "skew KL", "the skewed KL divergence"),
    "skew_reverse_kl": Choice(
        "reverse KL to a mixture of both (DistiLLM)", "skew reverse KL", "the skewed reverse KL divergence"
    ),
    "total_variation": Choice("half the L1 distance", "total variation", "the total variation distance"),
}

#: Options of `federation.aggregation`; the functions are in `federation/aggregation/rules.py`.
AGGREGATIONS: Mapping[str, Choice] = {
    "mean": Choice(
        "weighted by number of examples, as in FedAvg", phrase="averaged, weighted by number of examples", weighted=True
    ),
    "uniform": Choice("equal weights 1/K, as in the paper", phrase="averaged with equal weights"),
    "product": Choice(
        "mean of LoRA's products B A, weighted by number of examples",
        "mean of products",
        "averaged as LoRA’s products B A, weighted by number of examples",
        single_updates=True,
        plain_lora=True,
        weighted=True,
    ),
    "median": Choice(
        "coordinate-wise median of the updates, which a minority of faulty clients cannot move far",
        "coordinate-wise median",
        "combined by their coordinate-wise median",
        single_updates=True,
        bears=(2, 1),
    ),
    "trimmed_mean": Choice(
        "mean of each value without its f smallest and f largest",
        "trimmed mean",
        "combined by a trimmed mean of each value",
        single_updates=True,
        bears=(2, 1),
    ),
    "geometric_median": Choice(
        "the point with the least sum of distances to the updates",
        "geometric median",
        "combined by their geometric median",
        single_updates=True,
        bears=(2, 1),
    ),
    "krum": Choice(
        "the one update that is closest to its nearest others",
        "Krum",
        "replaced by the one that Krum selects",
        single_updates=True,
        bears=(2, 3),
    ),
    "multi_krum": Choice(
        "mean of all updates except the f that Krum likes least",
        "multi-Krum",
        "averaged over those that multi-Krum selects",
        single_updates=True,
        bears=(2, 3),
    ),
    "bulyan": Choice(
        "trimmed mean around the median of the updates that Krum selects",
        "Bulyan",
        "combined by Bulyan",
        single_updates=True,
        bears=(4, 3),
    ),
    "trust": Choice(
        "weighted by their agreement with an update that the server trains on its labelled public examples (FLTrust)",
        "FLTrust",
        "weighted by their agreement with the server’s own update (FLTrust)",
        single_updates=True,
        reference=True,
    ),
    "agreement": Choice(
        "equal weights for the updates that point the way of the others, none longer than the median one",
        "agreement",
        "averaged over those that point the way of the others, none longer than the median one",
        single_updates=True,
        bears=(2, 1),
    ),
    "held_out": Choice(
        "weighted by each client's score on examples that it holds out of its training (client.held_out)",
        phrase="weighted by each client’s score on examples that it holds out",
        single_updates=True,
    ),
}

#: Options of `federation.server_optimizer.kind`; the functions are in `federation/server_optimizers.py`.
SERVER_OPTIMIZERS: Mapping[str, Choice] = {
    "average": Choice("plain FedAvg"),
    "fedavgm": Choice("with momentum", "FedAvgM server", "FedAvgM", {"momentum": 0.5}),
    "fedadam": Choice("with Adam", "FedAdam server", "FedAdam", {"learning_rate": 0.01}),
}

#: Options of `client.schedule` and `server.schedule`, implemented by transformers' `get_scheduler`; see
#: `training/optimizers.py`.
SCHEDULES: Mapping[str, Choice] = {
    "constant": Choice("the learning rate stays at its peak after the warm-up"),
    "linear": Choice(
        "it decays linearly to 0 by the end of each round",
        "linear schedule",
        "a learning rate that falls linearly to 0",
    ),
    "cosine": Choice(
        "it falls to 0 along half a cosine by the end of each round",
        "cosine schedule with warm-up",
        "a learning rate that falls to 0 along half a cosine",
        {"warmup_ratio": 0.1},
    ),
}

#: Options of `server.distillation.gate`; the functions are in `federation/gate.py`.
GATES: Mapping[str, Choice] = {
    "none": Choice("every row counts alike, as in the paper"),
    "reliability": Choice(
        "what a model teaches counts by how reliable it is for the class that it predicts, compared with the one that "
        "it teaches; measured on a quarter of the labelled public examples, which are not trained on",
        phrase="a gate by each teacher’s reliability on held-out labels",
    ),
}

#: Options of `client.loss`; the functions are in `training/losses.py`.
LOSSES: Mapping[str, Choice] = {
    "cross_entropy": Choice("the paper's"),
    "generalized": Choice(
        "a label that the model finds unlikely, as wrong ones are, counts less (Zhang and Sabuncu)",
        phrase="the generalized cross-entropy",
    ),
    "symmetric": Choice(
        "the cross-entropy and its reverse, which no single label makes large (Wang et al.)",
        phrase="the symmetric cross-entropy",
    ),
}

#: Options of `slm.layer_choice`; the functions are in `training/shrinking.py`.
LAYER_CHOICES: Mapping[str, Choice] = {
    "even": Choice("evenly spaced, including the first and the last"),
    "edges": Choice("three tenths of them the first ones, the others the last ones"),
    "block": Choice("without the one contiguous block that the next-token distributions need least"),
    "influence": Choice("those that change their input most (ShortGPT)"),
}

#: Options of `control.features`, which each modality computes in its own way; see `modalities/text/evidence.py` and
#: `modalities/vision/evidence.py`.
FEATURES: Mapping[str, Choice] = {
    "constant": Choice(
        "the same for every example, which gives the most frequent label, or place of the right choice",
        phrase="the most frequent label, or the most frequent place of the right choice",
    ),
    "ngrams": Choice(
        "hashed character 3- to 5-grams of the text, or an image's pixels, without any model",
        phrase="ridge regression on hashed character n-grams, or on an image’s pixels",
    ),
    "slm": Choice(
        "the small model's last hidden state, without an adapter",
        phrase="ridge regression on the small model’s last hidden state",
    ),
    "ngrams_slm": Choice(
        "both side by side, for which a ridge of about 0.06 is as strong as 0.3 for one of them",
        phrase="ridge regression on n-grams (or pixels) and the small model’s last hidden state",
    ),
}

#: Options of `server.pseudo_labels.teachers`; `Server` asks each of them.
TEACHERS: Mapping[str, Choice] = {
    "regression": Choice("ridge regression on sums over the clients", phrase="a regression on sums over the clients"),
    "llm": Choice("the large model, from round 2 on", phrase="the large model"),
    "slm": Choice("the small model after the clients' round, from round 2 on", phrase="the small model"),
}

#: Last part of a dotted key to its table. A name has the same table in every section.
TABLES: Mapping[str, Mapping[str, Choice]] = {
    "divergence": DIVERGENCES,
    "gate": GATES,
    "aggregation": AGGREGATIONS,
    "kind": SERVER_OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
    "layer_choice": LAYER_CHOICES,
    "features": FEATURES,
    "teachers": TEACHERS,
}

#: Last part of a dotted key to the sections in which `fedcollm compare` sets it.
_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "divergence": ("server.distillation",),
    "gate": ("server.distillation",),
    "aggregation": ("federation",),
    "kind": ("federation.server_optimizer",),
    "schedule": ("client", "server"),
    "loss": ("client",),
}


def comment(key: str) -> str:
    """Return the comment for a key with options: every option with what it does.

    >>> comment("kind")
    'average: plain FedAvg; fedavgm: with momentum; fedadam: with Adam'
    """
    return "; ".join(f"{name}: {choice.comment}" for name, choice in TABLES[key].items())


def ablations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the name, the label and the dotted keys of one ablation per option that has a label."""
    for key, table in TABLES.items():
        for name, choice in table.items():
            if choice.label:
                values = {key: name, **choice.beside}
                yield (
                    name,
                    f"FedCoLLM, {choice.label}",
                    {f"{section}.{leaf}": value for section in _SECTIONS[key] for leaf, value in values.items()},
                )
