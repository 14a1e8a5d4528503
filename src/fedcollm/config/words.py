"""A configuration in words, for the report and for `fedcollm check`. No setting is left out.

Every key belongs to one of three lists: facts that are stated for every run (`facts_in_words`), settings of the method
that differ from their defaults (`settings_in_words`), and data, models and scoring that differ from their defaults
(`inputs_in_words`). A key without a phrase is stated as `key: value`, so that a new key appears without any change
here. The phrases of options come from `choices.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fedcollm.config.base import Section
from fedcollm.config.choices import AGGREGATIONS, DIVERGENCES, FEATURES, SCHEDULES, SERVER_OPTIMIZERS, Choice
from fedcollm.config.roles import MODELS, ROLES
from fedcollm.config.run import RunConfig
from fedcollm.config.training import TrainingConfig

#: A format string for the value, or a function of it. If the function returns "", the key is stated as `key: value`.
Phrase = str | Callable[[Any], str]
Predicate = Callable[[RunConfig], bool]

#: The keys that `facts_in_words` states for every run.
FACTS: frozenset[str] = frozenset(
    {
        *(f"{side}.{key}" for side in ("client", "server") for key in ("epochs", "batch_size", "learning_rate")),
        *(f"server.distillation.{key}" for key in ("weight", "llm_weight", "temperature")),
        *(f"federation.{key}" for key in ("rounds", "aggregation", "secure_aggregation.enabled", "privacy.level")),
        "control.features",
    }
)

#: Prefixes of the keys that belong to the method. All other keys select the data, the models and the scoring.
_METHOD = ("client.", "server.", "federation.", "control.", *(f"{role}.adapter." for role in MODELS))


def _percent(value: float) -> str:
    return f"{100 * value:g}%"


def _names(value: list[Any] | str) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, value))


def _chosen(table: Mapping[str, Choice], phrase: str) -> Callable[[str], str]:
    """Return a phrase that inserts the words of an option into `phrase`, or returns "" for an option without words."""
    return lambda name: phrase.format(table[name].phrase) if table[name].phrase else ""


def _of_adapter(role: str) -> dict[str, Phrase]:
    model = ROLES[role].label.lower()
    phrases: dict[str, Phrase] = {
        "kind": f"the {model}’s adapter is of kind {{}}",
        "rank": f"the {model}’s adapter has rank {{}}",
        "alpha": f"the {model}’s adapter has scale α = {{:g}}",
        "dropout": f"dropout of {{:g}} in the {model}’s adapter",
        "targets": lambda names: f"the {model}’s adapter is on {_names(names)}",
        "freeze_a": f"LoRA’s A stays frozen in the {model} (FFA-LoRA)",
    }
    return {f"{role}.adapter.{key}": phrase for key, phrase in phrases.items()}


def _of_training(section: str, place: str) -> dict[str, Phrase]:
    phrases: dict[str, Phrase] = {
        "gradient_accumulation": f"gradients accumulated over {{}} batches {place}",
        "schedule": _chosen(SCHEDULES, f"{{}} {place}"),
        "warmup_ratio": lambda share: f"learning-rate warm-up over {_percent(share)} of a round’s steps {place}",
        "weight_decay": f"weight decay of {{:g}} {place}",
        "betas": lambda betas: f"AdamW with β = ({_names(betas)}) {place}",
        "max_grad_norm": f"gradients clipped to an L2 norm of {{:g}} {place}",
    }
    return {f"{section}.{key}": phrase for key, phrase in phrases.items()}


#: Dotted key to the phrase that states a value other than the default.
PHRASES: Mapping[str, Phrase] = {
    **_of_adapter("llm"),
    **_of_adapter("slm"),
    **_of_training("client", "at the clients"),
    "client.proximal": "FedProx at the clients, μ = {:g}",
    "client.ranks": lambda ranks: f"the clients train adapters of rank {_names(ranks)}, in turn",
    "client.personal": "each client keeps a copy of the final adapter, tuned to its own data",
    **_of_training("server", "on the server"),
    "server.distillation.divergence": _chosen(DIVERGENCES, "distillation with {}"),
    "server.distillation.teach_where_better": "a model is taught only where the other one knows better",
    "server.distillation.warmup_rounds": "λ rises linearly over the first {} rounds",
    "server.distillation.across_tokenizers": "the two models may have different tokenizers",
    "server.layer_transfer": lambda share: (
        f"layer transfer: the large model starts from the small model’s adapter, and {_percent(share)} of the clients’ "
        "mean change goes into its own layers"
    ),
    "federation.fraction": lambda share: f"each round samples {_percent(share)} of the clients",
    "federation.participants": lambda ids: f"the only clients are {_names(ids)}",
    "federation.upload": "clients send their adapters in {}",
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
    "federation.secure_aggregation.threshold": "secure aggregation needs {} clients to open a sum",
    "federation.secure_aggregation.value_range": "secure aggregation accepts changes of a parameter up to {:g}",
    "federation.secure_aggregation.max_weight": "secure aggregation accepts clients with up to {} examples",
    "federation.secure_aggregation.simulate_quantization": "updates are rounded as secure aggregation would round them",
    "federation.privacy.clip": "differential privacy clips to an L2 norm of {:g}",
    "federation.privacy.noise_multiplier": "the noise of differential privacy is {:g} times the clipping norm",
    "federation.privacy.delta": "differential privacy holds with δ = {:g}",
    "federation.privacy.sampling_rate": "an example is in a private batch with probability {:g}",
    "control.columns": "the control’s n-grams are hashed to {} columns",
    "control.ridge": "the control’s ridge is λ = {:g}",
}


def _has_clients(config: RunConfig) -> bool:
    return config.federation.participants != []


def _trains(config: RunConfig) -> bool:
    return config.control is None


def _works_on_public_set(config: RunConfig) -> bool:
    return config.server.epochs > 0


def _distils(config: RunConfig) -> bool:
    return _works_on_public_set(config) and max(config.server.distillation.weights) > 0


def _quantizes(config: RunConfig) -> bool:
    secure = config.federation.secure_aggregation
    return secure.enabled or secure.simulate_quantization


def _has_range(config: RunConfig) -> bool:
    privacy = config.federation.privacy  # at level client it has its own range
    return _quantizes(config) and not (privacy is not None and privacy.level == "client")


def _has_rank(role: str) -> Predicate:
    return lambda config: getattr(config, role).adapter.kind.lower() != "ia3"


#: Dotted key or section to the condition under which it takes effect. A key also needs the conditions of its sections.
EFFECT: Mapping[str, Predicate] = {
    "llm.adapter": _works_on_public_set,
    **{f"{role}.adapter.{key}": _has_rank(role) for role in MODELS for key in ("rank", "alpha", "dropout")},
    "slm.adapter": _trains,
    "client": lambda config: _has_clients(config) and _trains(config),
    "server": _works_on_public_set,
    "server.distillation": _distils,
    "federation": _has_clients,
    "federation.server_optimizer": _trains,
    "federation.server_optimizer.momentum": lambda config: config.federation.server_optimizer.kind != "average",
    "federation.server_optimizer.decay": lambda config: (
        config.federation.server_optimizer.kind not in ("average", "fedavgm")
    ),
    "federation.server_optimizer.tau": lambda config: (
        config.federation.server_optimizer.kind not in ("average", "fedavgm")
    ),
    "control.columns": lambda config: config.control is not None and config.control.features == "ngrams",
    "federation.min_clients": lambda config: not config.federation.secure_aggregation.enabled,
    "federation.max_update_norm": lambda config: not config.federation.secure_aggregation.enabled,
    "federation.deadlines.phase": lambda config: config.federation.secure_aggregation.enabled,
    "federation.secure_aggregation.threshold": lambda config: config.federation.secure_aggregation.enabled,
    "federation.secure_aggregation.value_range": _has_range,
    "federation.secure_aggregation.max_weight": lambda config: _has_range(config) and config.federation.weighted,
    "federation.secure_aggregation.simulate_quantization": (
        lambda config: not config.federation.secure_aggregation.enabled
    ),
}


def takes_effect(config: RunConfig, key: str) -> bool:
    """Return whether a dotted key has an effect in a run of this configuration."""
    return all(holds(config) for name, holds in EFFECT.items() if f"{key}.".startswith(f"{name}."))


def facts_in_words(config: RunConfig) -> list[str]:
    """Return short phrases with the facts of every run: rounds, training, aggregation, security, privacy."""
    if config.control is not None:
        phrase = FEATURES[config.control.features].phrase or _plainly("control.features", config.control.features)
        who = _of_updates(config) if _has_clients(config) else ["no clients, only labelled public examples"]
        return [f"no training, but a control in closed form: {phrase}", *who]
    facts = [_counted(config.federation.rounds, "round")]
    facts += [_of_clients(config)] if _has_clients(config) else ["no clients"]
    if _works_on_public_set(config):
        facts += [f"the server trains {_training(config.server, ' on the public set')}", _weights(config)]
    else:
        facts += ["no work on the public set (federated averaging only)"]
    return facts + (_of_updates(config) if _has_clients(config) else [])


def settings_in_words(config: RunConfig) -> list[str]:
    """Return a short phrase for each setting of the method that differs from its default and takes effect.

    The settings are those of the sections client, server and federation and of the adapters, without the facts that
    `facts_in_words` states.

    >>> settings_in_words(RunConfig())
    []
    >>> settings_in_words(RunConfig.model_validate({"client": {"proximal": 0.01}}))
    ['FedProx at the clients, μ = 0.01']
    """
    return [
        _said(key, value)
        for key, value in _changed(config, RunConfig())
        if key.startswith(_METHOD) and key not in FACTS and takes_effect(config, key)
    ]


def inputs_in_words(config: RunConfig) -> list[str]:
    """Return all other keys that differ from their defaults (name, seed, data, models, scoring) as `key: value`.

    >>> inputs_in_words(RunConfig(seed=3))
    ['seed: 3']
    """
    return [_plainly(key, value) for key, value in _changed(config, RunConfig()) if not key.startswith(_METHOD)]


def everything_in_words(config: RunConfig) -> list[str]:
    """Return the facts, the settings and the inputs of a run, in this order."""
    return [*facts_in_words(config), *settings_in_words(config), *inputs_in_words(config)]


def _changed(section: Section, default: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values in which a section differs from its defaults.

    Args:
        section: the section.
        default: a section of the same class with the defaults; with anything else, those of the class are used.
        prefix: dotted name of the section, with a dot at its end.
    """
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        plain = getattr(default, name) if isinstance(default, type(section)) else field.get_default()
        if isinstance(value, Section):
            yield from _changed(value, plain, f"{prefix}{name}.")
        elif value != plain:
            yield f"{prefix}{name}", value


def _said(key: str, value: Any) -> str:
    """Return a key and its value in words, or as `key: value` if there is no phrase."""
    phrase = PHRASES.get(key)
    if phrase is None or value is None:
        return _plainly(key, value)
    return (phrase.format(value) if isinstance(phrase, str) else phrase(value)) or _plainly(key, value)


def _plainly(key: str, value: Any) -> str:
    return f"{key}: {'null' if value is None else value}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _training(section: TrainingConfig, where: str = "", batches: str = "batches of {}") -> str:
    epochs, batches = _counted(section.epochs, "epoch"), batches.format(section.batch_size)
    return f"{epochs} per round{where} ({batches}, learning rate {section.learning_rate:g})"


def _of_clients(config: RunConfig) -> str:
    privacy = config.federation.privacy
    if privacy is not None and privacy.level == "example":  # DP-SGD draws its batches at sampling_rate
        return f"each client trains {_training(config.client, batches='{} examples in memory at once')}"
    return f"each client trains {_training(config.client)}"


def _weights(config: RunConfig) -> str:
    distillation = config.server.distillation
    words = f"λ = {distillation.weight:g}"
    if distillation.llm_weight is not None:
        words += f" for the small and {distillation.llm_weight:g} for the large model"
    return words + (f", τ = {distillation.temperature:g}" if _distils(config) else " (cross-entropy only)")


def _of_updates(config: RunConfig) -> list[str]:
    federation = config.federation
    what = "adapters" if config.control is None else "statistics"
    phrase = AGGREGATIONS[federation.aggregation].phrase
    return [
        f"{what} {phrase}" if phrase else _plainly("federation.aggregation", federation.aggregation),
        "updates masked by secure aggregation"
        if federation.secure_aggregation.enabled
        else "no secure aggregation, so the server sees every client’s update",
        f"differential privacy at the level of each {federation.privacy.level}"
        if federation.privacy
        else "no differential privacy",
    ]
