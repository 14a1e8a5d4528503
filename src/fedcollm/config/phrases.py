"""What the report and `fedcollm check` say of each key of the method that differs from its default.

The phrases of options come from `choices.py`; `words.py` puts the phrases together.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fedcollm.config.choices import DIVERGENCES, FEATURES, GATES, LOSSES, SCHEDULES, SERVER_OPTIMIZERS, TEACHERS, Choice
from fedcollm.config.roles import ROLES

#: A format string for the value, or a function of it. If the function returns "", the key is stated as `key: value`.
Phrase = str | Callable[[Any], str]


def _percent(value: float) -> str:
    return f"{100 * value:g}%"


def _names(value: list[Any] | str) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, value))


def _probabilities(kinds: Mapping[str, float]) -> str:
    """Return the names of augmentations with their probabilities."""
    return ", ".join(f"{name} ({_percent(share)} of the examples)" for name, share in kinds.items())


def _chosen(table: Mapping[str, Choice], phrase: str) -> Callable[[str], str]:
    """Return a phrase that inserts the words of an option into `phrase`, or returns "" for an option without words."""
    return lambda name: phrase.format(table[name].phrase) if table[name].phrase else ""


def _all(table: Mapping[str, Choice], names: list[str]) -> str:
    """Return the words of several options as one phrase."""
    return " and ".join(table[name].phrase for name in names)


def _of_adapter(role: str) -> dict[str, Phrase]:
    model = ROLES[role].label.lower()
    phrases: dict[str, Phrase] = {
        "kind": f"the {model}’s adapter is of kind {{}}",
        "rank": f"the {model}’s adapter has rank {{}}",
        "alpha": f"the {model}’s adapter has scale α = {{:g}}",
        "dropout": f"dropout of {{:g}} in the {model}’s adapter",
        "targets": lambda names: f"the {model}’s adapter is on {_names(names)}",
        "start": f"the {model}’s adapter starts from {{}}",
        "core": f"only a core of r × r values per layer is trained in the {model} (LoRA-XS)",
        "freeze_a": f"LoRA’s A stays frozen in the {model} (FFA-LoRA)",
    }
    return {f"{role}.adapter.{key}": phrase for key, phrase in phrases.items()}


def _of_training(section: str, place: str) -> dict[str, Phrase]:
    phrases: dict[str, Phrase] = {
        "gradient_accumulation": f"gradients accumulated over {{}} batches {place}",
        "micro_batch_size": f"batches computed in parts of at most {{}} examples {place}",
        "schedule": _chosen(SCHEDULES, f"{{}} {place}"),
        "warmup_ratio": lambda share: f"learning-rate warm-up over {_percent(share)} of a round’s steps {place}",
        "weight_decay": f"weight decay of {{:g}} {place}",
        "betas": lambda betas: f"AdamW with β = ({_names(betas)}) {place}",
        "max_grad_norm": f"gradients clipped to an L2 norm of {{:g}} {place}",
    }
    return {f"{section}.{key}": phrase for key, phrase in phrases.items()}


#: Dotted key to the phrase that states a value other than the default; a section is stated when it is switched on.
PHRASES: Mapping[str, Phrase] = {
    **_of_adapter("llm"),
    **_of_adapter("slm"),
    **_of_training("client", "at the clients"),
    "client.loss": _chosen(LOSSES, "{} as the clients’ loss"),
    "client.loss_q": "the clients’ generalized cross-entropy has q = {:g}",
    "client.loss_weights": lambda weights: f"the clients’ symmetric cross-entropy has (α, β) = ({_names(weights)})",
    "client.loss_trim": lambda share: (
        f"clients leave out the {_percent(share)} of a batch’s rows with the largest losses"
    ),
    "client.proximal": "FedProx at the clients, μ = {:g}",
    "client.ranks": lambda ranks: f"the clients train adapters of rank {_names(ranks)}, in turn",
    "client.held_out": lambda share: f"each client scores its adapter on {_percent(share)} of its examples, held out",
    "client.personal": "each client keeps a copy of the final adapter, tuned to its own data",
    "client.augmentation": "the clients change their training examples anew in every epoch",
    "client.augmentation.kinds": lambda kinds: f"by {_probabilities(kinds)}",
    "client.augmentation.strength": "by {:g} times the usual amount",
    **_of_training("server", "on the server"),
    "server.unlabelled_per_round": "each round uses the next {} unlabelled public examples",
    "server.even_labels": "every batch has the same share of labelled public examples",
    "server.distillation.divergence": _chosen(DIVERGENCES, "distillation with {}"),
    "server.distillation.teach_where_better": "a model is taught only where the other one knows better",
    "server.distillation.gate": _chosen(GATES, "distillation with {}"),
    "server.distillation.warmup_rounds": "λ rises linearly over the first {} rounds",
    "server.distillation.across_tokenizers": "the two models may have different tokenizers",
    "server.pseudo_labels": "the unlabelled public examples get labels",
    "server.pseudo_labels.features": _chosen(FEATURES, "these labels come from {}"),
    "server.pseudo_labels.columns": "n-grams for these labels are hashed to {} columns",
    "server.pseudo_labels.ridge": "the ridge for these labels is λ = {:g}",
    "server.pseudo_labels.labels": lambda how: {"drawn": "these labels are drawn anew in every round"}.get(how, ""),
    "server.pseudo_labels.teachers": lambda names: f"these labels are by {_all(TEACHERS, names)}",
    "server.pseudo_labels.always": "these labels are used even if the untrained models know better",
    "server.fresh_slm_epochs": "after the last round, a new small model is distilled from the large one (epochs: {})",
    "server.layer_transfer": lambda share: (
        f"layer transfer: the large model starts from the small model’s adapter, and {_percent(share)} of the clients’ "
        "mean change goes into its own layers"
    ),
    "federation.fraction": lambda share: f"each round samples {_percent(share)} of the clients",
    "federation.participants": lambda ids: f"the only clients are {_names(ids)}",
    "federation.faulty": "up to {} clients of a round may be faulty",
    "federation.clip_to_median": "longer changes are scaled down to {:g} times the round’s median norm",
    "federation.clip_norm": "changes are scaled down to an L2 norm of {:g}",
    "federation.max_drop": "a round whose mean scores lower on the labelled public examples by over {:g} is rejected",
    "federation.secure_aggregation.bits": "secure sums of at most {} bits per value",
    "federation.upload": "clients send their adapters in {}",
    "federation.download": "the server sends its adapter in {}",
    "federation.server_optimizer.kind": _chosen(SERVER_OPTIMIZERS, "{} as the server optimizer"),
    "federation.server_optimizer.learning_rate": "server learning rate of {:g}",
    "federation.server_optimizer.momentum": "server momentum of {:g}",
    "federation.server_optimizer.decay": "the server optimizer’s second moment decays by {:g}",
    "federation.server_optimizer.tau": "the server optimizer’s adaptivity is τ = {:g}",
    "federation.min_clients": "a round needs the updates of at least {} clients",
    "federation.deadlines.training": "a deployment waits {:g} s for a client’s local training",
    "federation.deadlines.phase": "a deployment waits {:g} s for a client’s answer in secure aggregation",
    "federation.deadlines.absence": "a deployment waits {:g} s for a client that is not connected",
    "federation.max_update_norm": "a client’s update may have an L2 norm of at most {:g}",
    "federation.max_adapter_value": "clients train only global adapters whose values are at most {:g}",
    "federation.max_adapter_norm": "clients train only global adapters whose tensors have an L2 norm of at most {:g}",
    "federation.max_loss": "a client whose loss before training exceeds {:g} changes nothing",
    "federation.secure_aggregation.threshold": "secure aggregation needs {} clients to open a sum",
    "federation.secure_aggregation.value_range": "secure aggregation accepts changes of a parameter up to {:g}",
    "federation.secure_aggregation.max_weight": "secure aggregation accepts clients with up to {} examples",
    "federation.secure_aggregation.simulate_quantization": "updates are rounded as secure aggregation would round them",
    "federation.profile": (
        "the clients send once how their labels, lengths and contents are distributed, as shares in buckets"
    ),
    "federation.privacy.clip": "differential privacy clips to an L2 norm of {:g}",
    "federation.privacy.noise_multiplier": "the noise of differential privacy is {:g} times the clipping norm",
    "federation.privacy.delta": "differential privacy holds with δ = {:g}",
    "federation.privacy.sampling_rate": "an example is in a private batch with probability {:g}",
    "control.columns": "the control’s n-grams are hashed to {} columns",
    "control.ridge": "the control’s ridge is λ = {:g}",
}
