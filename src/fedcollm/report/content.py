"""The words of a report: headline, key numbers, method, and how configurations differ."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedcollm.config import RunConfig, ServerConfig
from fedcollm.report.formats import byte_count, count, duration, percent, share
from fedcollm.report.runs import Method, described
from fedcollm.report.scores import ROLES, curve, finals, interval, role_scores, sampling_half_width
from fedcollm.report.tables import PARTS, Summary, Table

METHOD = (
    "In every round the server sends the small model’s adapter θ to the clients, each client fine-tunes it on its own "
    "private examples, and the server averages what comes back; the examples never leave a client. "
    "The server then distils its large model and the averaged small model into each other on a public set: each of "
    "them minimizes its cross-entropy plus λτ² times the Kullback–Leibler divergence from the other’s predictions. "
    "So the clients gain what the large model knows and the large model gains what the clients learnt, while only an "
    "adapter travels (FedCoLLM: Fan et al. 2024, arXiv 2411.11707, Algorithm 1)."
)
AGGREGATIONS = {
    "mean": "weighted by number of examples",
    "uniform": "each with weight 1/K",
    "product": "by their products BA, weighted by number of examples",
}
SUBJECTS = {"slm": "the clients’ small model", "llm": "the server’s large model"}

#: Divergences other than the method's own.
DIVERGENCES = {
    "reverse_kl": "reverse Kullback–Leibler divergence",
    "jensen_shannon": "Jensen–Shannon divergence",
    "skew_kl": "skewed Kullback–Leibler divergence",
    "skew_reverse_kl": "skewed reverse Kullback–Leibler divergence",
}

#: What the server does with the clients' mean change.
STEPS = {"average": "plain", "fedavgm": "FedAvgM", "fedadam": "FedAdam"}


@dataclass(frozen=True)
class Tile:
    """One key number."""

    label: str
    value: str
    note: str = ""
    spread: str = ""


def headline(method: Method, numbers: Summary) -> str:
    """What the method did for both roles, in one sentence."""
    changes = []
    for role, subject in SUBJECTS.items():
        values, points = finals(method, role), curve(method, role)
        if not values:
            continue
        last = percent(interval(list(values.values()))[0])
        if numbers.rounds_done == 0:
            changes.append(f"{subject} is at {last}")
        elif points and points[0].round == 0:
            changes.append(f"{subject} went from {percent(points[0].mean)} to {last}")
        else:
            changes.append(f"{subject} reached {last}")
    if not changes:
        return f"{rounds_text(numbers)} finished, none of them scored."
    start = f"After {rounds_text(numbers)}, " if numbers.rounds_done else "Before any training, "
    return f"{start}{' accuracy, and '.join(changes)}{' accuracy' if len(changes) == 1 else ''}."


def rounds_text(numbers: Summary) -> str:
    """Rounds done, and of how many if the run is not complete."""
    noun = "round" if max(numbers.rounds_done, numbers.rounds_planned) == 1 else "rounds"
    if numbers.rounds_done >= numbers.rounds_planned:
        return f"{numbers.rounds_done} {noun}"
    return f"{numbers.rounds_done} of {numbers.rounds_planned} {noun}"


def tiles(method: Method, numbers: Summary) -> list[Tile]:
    """Key numbers: scores over all seeds, costs of the first run."""
    known = [(role, finals(method, role)) for role in ROLES]
    result = []
    for role, values in known:
        if values:
            mean, half = interval(list(values.values()))
            spread = "" if half is None else f"± {100 * half:.1f}"
            result.append(Tile(ROLES[role], percent(mean), _score_note(method, role), spread))
    if numbers.bytes_up and method.federated:
        note, part = "by each client", numbers.share_of_full_model
        if part is not None:
            note += f": {share(part)} of the full model’s {byte_count(numbers.full_model_bytes or 0)}"
        result.append(Tile("Sent in a round", byte_count(numbers.bytes_up), note))
    spent = {label: numbers.seconds[part] for part, label in PARTS.items() if numbers.seconds.get(part)}
    note = ", ".join(f"{label.lower()} {duration(seconds)}" for label, seconds in spent.items())
    if spent:
        result.append(Tile("Time", duration(math.fsum(numbers.seconds.values())), note))
    if numbers.peak_memory_bytes:
        result.append(Tile("Peak memory", byte_count(numbers.peak_memory_bytes), "of the process that ran it"))
    return result


def _score_note(method: Method, role: str) -> str:
    points = curve(method, role)
    notes = []
    if points and points[0].round == 0 and len(points) > 1:
        notes.append(f"from {percent(points[0].mean)} zero-shot")
    if role == "clients":
        notes.append("after local tuning")
    if len(method.by_seed) > 1:
        notes.append(f"95% interval over {len(method.by_seed)} seeds")
    elif len(method.runs) == 1:
        scores = role_scores(method.runs[0].records, role)
        if scores.best_round != scores.final_round:
            notes.append(f"best {percent(scores.best)} in round {scores.best_round}")
    return ", ".join(notes)


def caution(method: Method) -> str:
    """How far a score can be trusted, from the size of the test set alone."""
    examples = method.runs[0].data.get("test")
    values = next((list(values.values()) for role in SUBJECTS if (values := finals(method, role))), [])
    if not examples or not values or not 0 <= (value := interval(values)[0]) <= 1:
        return ""
    half = 100 * sampling_half_width(value, examples)
    return (
        f"Scored on {count(examples)} test examples, which alone leaves ±{half:.1f} points (95% interval) "
        f"around {percent(value)}."
    )


def settings(config: RunConfig) -> str:
    """How this run departs from, or fills in, the method's sentences."""
    federation, first, words = config.federation, _on_public_set(config.server), ablations(config)
    otherwise = f" Otherwise than above: {'; '.join(words)}." if words else ""
    if federation.participants == []:
        return f"In this run: {first}; no clients.{otherwise}"
    kind = AGGREGATIONS[federation.aggregation]
    security = (
        "masked by secure aggregation"
        if federation.secure_aggregation.enabled
        else "without secure aggregation, so the server sees each of them"
    )
    privacy = f"with {federation.privacy.level}-level" if federation.privacy else "without"
    return f"In this run: {first}; adapters averaged {kind}, {security}; {privacy} differential privacy.{otherwise}"


def _on_public_set(server: ServerConfig) -> str:
    if not server.epochs:
        return "no work on the public set (federated averaging only)"
    distillation = server.distillation
    weights = f"λ\u00a0=\u00a0{distillation.weight:g}"
    if distillation.llm_weight is not None:
        weights += f" for the small and {distillation.llm_weight:g} for the large model"
    epochs = "epoch" if server.epochs == 1 else "epochs"
    return f"{server.epochs} {epochs} on the public set a round, {weights}, τ\u00a0=\u00a0{distillation.temperature:g}"


def ablations(config: RunConfig) -> list[str]:
    """What a run does otherwise than the method's sentences say, as far as it takes effect."""
    server, taught, step = config.server, config.server.distillation, config.federation.server_optimizer
    distils = bool(server.epochs and (taught.weight or taught.llm_weight))
    clients = config.federation.participants != []
    frozen = {"small": config.slm.adapter.freeze_a, "large": config.llm.adapter.freeze_a and server.epochs > 0}
    models = " and ".join(name for name, is_frozen in frozen.items() if is_frozen)
    words = {
        DIVERGENCES.get(taught.divergence, ""): distils and taught.divergence != "forward_kl",
        "a model is taught only where the other one knows better": distils and taught.teach_where_better,
        f"λ grows linearly over the first {taught.warmup_rounds} rounds": distils and taught.warmup_rounds > 0,
        f"{100 * server.layer_transfer:g}% of the averaged change goes into the large model’s own layers": (
            clients and server.epochs and server.layer_transfer
        ),
        f"{STEPS[step.kind]} step of the server, η\u00a0=\u00a0{step.learning_rate:g}": (
            clients and (step.kind != "average" or step.learning_rate != 1)
        ),
        f"FedProx at the clients, μ\u00a0=\u00a0{config.client.proximal:g}": clients and config.client.proximal,
        f"gradients at the clients clipped to norm {config.client.max_grad_norm}": (
            clients and config.client.max_grad_norm
        ),
        f"gradients on the server clipped to norm {server.max_grad_norm}": server.epochs and server.max_grad_norm,
        f"LoRA’s A stays frozen in the {models} model (FFA-LoRA)": models,
    }
    return [text for text, holds in words.items() if holds]


def explained(methods: Sequence[Method]) -> list[tuple[str, str]]:
    """Names of compared methods with what they are, as far as it is known."""
    return [(method.name, words) for method in methods if (words := described(method.name))]


def differences(methods: Sequence[Method]) -> Table:
    """Keys of the configuration in which other methods' first runs differ from the first method's."""
    configs = [dict(_flat(method.runs[0].config.model_dump(mode="json"))) for method in methods]
    keys = [key for key in configs[0] if any(config.get(key) != configs[0][key] for config in configs[1:])]
    keys += [key for key in dict.fromkeys(key for config in configs for key in config) if key not in configs[0]]
    rows = [(key, *(str(config.get(key, "–")) for config in configs)) for key in keys]
    return Table(
        "Configuration, where methods differ (first run of each)", ("Key", *(method.name for method in methods)), rows
    )


def environment_table(environment: dict[str, Any]) -> Table:
    """Every value of the environment by its path."""
    rows = [
        (key, count(value) if isinstance(value, int) and value > 9999 else str(value))
        for key, value in _flat(environment)
    ]
    return Table("Environment of the run", ("What", "Value"), rows)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings by dotted path."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
