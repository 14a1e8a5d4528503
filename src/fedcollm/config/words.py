"""A configuration in words, for the report and for `fedcollm check`. No setting is left out.

Every key belongs to one of three lists: facts that are stated for every run (`facts_in_words`), settings of the method
that differ from their defaults (`settings_in_words`), and data, models and scoring that differ from their defaults
(`inputs_in_words`). A key without a phrase is stated as `key: value`, so that a new key appears without any change
here. The phrases are in `phrases.py`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fedcollm.config.base import Section
from fedcollm.config.choices import AGGREGATIONS, FEATURES
from fedcollm.config.control import StatisticsConfig
from fedcollm.config.models import ModelConfig
from fedcollm.config.phrases import PHRASES
from fedcollm.config.roles import MODELS, ROLES
from fedcollm.config.run import RunConfig
from fedcollm.config.training import TrainingConfig

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


def _has_clients(config: RunConfig) -> bool:
    return config.federation.participants != []


def _trains(config: RunConfig) -> bool:
    return config.control is None


def _works_on_public_set(config: RunConfig) -> bool:
    return config.server.epochs > 0


def _hashes(section: StatisticsConfig | None) -> bool:
    return section is not None and section.needs_columns


def _distils(config: RunConfig) -> bool:
    return _works_on_public_set(config) and max(config.server.distillation.weights) > 0


def _quantizes(config: RunConfig) -> bool:
    secure = config.federation.secure_aggregation
    return secure.enabled or secure.simulate_quantization


def _is_private(config: RunConfig, level: str) -> bool:
    privacy = config.federation.privacy
    return privacy is not None and privacy.level == level


def _has_range(config: RunConfig) -> bool:
    return _quantizes(config) and not _is_private(config, "client")  # level client has its own range


def _has_rank(role: str) -> Predicate:
    return lambda config: getattr(config, role).adapter.kind.lower() != "ia3"


#: Dotted key or section to the condition under which it takes effect. A key also needs the conditions of its sections.
EFFECT: Mapping[str, Predicate] = {
    "llm.adapter": _works_on_public_set,
    **{f"{role}.adapter.{key}": _has_rank(role) for role in MODELS for key in ("rank", "alpha", "dropout")},
    "slm.adapter": _trains,
    "client": lambda config: _has_clients(config) and _trains(config),
    "client.loss_q": lambda config: config.client.loss == "generalized",
    "client.loss_weights": lambda config: config.client.loss == "symmetric",
    "server": _works_on_public_set,
    "server.distillation": _distils,
    "server.unlabelled_per_round": lambda config: config.task.unlabelled_size > 0,
    "federation": _has_clients,
    "federation.server_optimizer": _trains,
    "federation.server_optimizer.momentum": lambda config: config.federation.server_optimizer.kind != "average",
    "federation.server_optimizer.decay": lambda config: (
        config.federation.server_optimizer.kind not in ("average", "fedavgm")
    ),
    "federation.server_optimizer.tau": lambda config: (
        config.federation.server_optimizer.kind not in ("average", "fedavgm")
    ),
    "evaluation.exhibits": _trains,
    "control.columns": lambda config: _hashes(config.control),
    "server.pseudo_labels.columns": lambda config: _hashes(config.statistics.ridge),
    "federation.min_clients": lambda config: not config.federation.secure_aggregation.enabled,
    "federation.faulty": lambda config: AGGREGATIONS[config.federation.aggregation].bears is not None,
    "federation.clip_to_median": _trains,
    "federation.clip_norm": lambda config: _trains(config) and not _is_private(config, "client"),
    "federation.max_drop": _trains,
    "federation.max_update_norm": lambda config: not _is_private(config, "client"),
    "federation.download": _trains,
    "federation.max_adapter_value": _trains,
    "federation.max_adapter_norm": _trains,
    "federation.max_loss": lambda config: _trains(config) and not _is_private(config, "example"),
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


def start_in_words(config: RunConfig) -> str:
    """Return what the scores before the first round are called: those of adapters trained before aren't zero-shot.

    >>> start_in_words(RunConfig())
    'zero-shot'
    """
    trained_before = any(getattr(config, role).adapter.start is not None for role in MODELS)
    return "before training" if trained_before else "zero-shot"


def facts_in_words(config: RunConfig) -> list[str]:
    """Return short phrases with the facts of every run: rounds, training, aggregation, security, privacy."""
    if config.control is not None:
        phrase = FEATURES[config.control.features].phrase or _plainly("control.features", config.control.features)
        who = _of_updates(config) if _has_clients(config) else ["no clients, only labelled public examples"]
        return [f"no training, but a control in closed form: {phrase}", *who]
    facts = [_counted(config.federation.rounds, "round")]
    facts += [_of_clients(config)] if _has_clients(config) else ["no clients"]
    facts += [_of_base(role, getattr(config, role)) for role in MODELS if getattr(config, role).cut]
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


def terms_in_words(config: RunConfig) -> list[str]:
    """Return the facts of a run and every other key that differs from its default, also those without an effect."""
    method = [(key, value) for key, value in _changed(config, RunConfig()) if key.startswith(_METHOD)]
    rest = [(key, value) for key, value in method if key not in FACTS]
    settings = [_said(key, value) if takes_effect(config, key) else _plainly(key, value) for key, value in rest]
    return [*facts_in_words(config), *settings, *inputs_in_words(config)]


def changes_in_words(config: RunConfig, before: RunConfig) -> list[str]:
    """Return each key in which a configuration differs from an earlier one, with both values.

    >>> changes_in_words(RunConfig(seed=3), RunConfig())
    ['seed: 3, was 0']
    """
    new, old = dict(_changed(config, before)), dict(_changed(before, config))
    return [f"{_plainly(key, new.get(key))}, was {_value(old.get(key))}" for key in {**new, **old}]


def _changed(section: Section, default: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values in which a section differs from its defaults.

    A section that is null by default and could have all its own defaults is yielded too, before its keys: that it is
    there is a setting.

    Args:
        section: the section.
        default: a section of the same class with the defaults; with anything else, those of the class are used.
        prefix: dotted name of the section, with a dot at its end.
    """
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        plain = getattr(default, name) if isinstance(default, type(section)) else field.get_default()
        if isinstance(value, Section):
            if plain is None and not any(inner.is_required() for inner in type(value).model_fields.values()):
                yield f"{prefix}{name}", value
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
    return f"{key}: {_value(value)}"


def _value(value: Any) -> str:
    """Return a value on one line: a text with line breaks or other signs of control as JSON."""
    if isinstance(value, Section):
        return "yes"
    if value is None:
        return "null"
    return str(value) if str(value).isprintable() else json.dumps(str(value), ensure_ascii=False)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _training(section: TrainingConfig, where: str = "", batches: str = "batches of {}") -> str:
    epochs, batches = _counted(section.epochs, "epoch"), batches.format(section.batch_size)
    return f"{epochs} per round{where} ({batches}, learning rate {section.learning_rate:g})"


def _of_base(role: str, section: ModelConfig) -> str:
    """Say what was cut from a base, and whether it was healed. Without that it predicts next to nothing at first."""
    words = f"the {ROLES[role].label.lower()} is {section.cut} of {section.source}, "
    return words + (f"healed on the text {section.heal.text}" if section.heal and section.heal.epochs else "not healed")


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
