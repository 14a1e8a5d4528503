"""The model card of a trained model: what it is, what it was trained on, what it scores, and how to load it.

It says only what the files of a run or a client tell; what is not known is left out, or said to be unknown.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.messages import RoundRecord
from fedcollm.runs import directory as directories
from fedcollm.runs.card_code import is_local, usage
from fedcollm.runs.portable import BASE, Portable, read_portable
from fedcollm.storage import write_atomically

#: File of a model card.
CARD = "README.md"

#: License of each shipped model, as its publisher gives it; those with random weights are fedcollm's own.
_LICENSES: Mapping[str, str] = {"smollm2-135m": "apache-2.0"}

#: What a license is said to be if nothing tells it.
_UNKNOWN = "see the base's own"


@dataclass(frozen=True)
class Facts:
    """What a card says of a training, besides what travels with the adapter.

    Attributes:
        config: the run's configuration.
        rounds: number of finished rounds.
        clients: client to the number of its training examples; empty if not known.
        sizes: words such as "public, labelled" to a number of examples.
        score: the main metric's name, its mean and the number of test examples; None if nothing was scored.
        outcomes: outcome of each test example, from which the interval follows.
        epsilon: ε spent; None without differential privacy, or if not known.
        client: the client that this copy belongs to, if any.
        notes: further sentences.
    """

    config: RunConfig
    rounds: int
    clients: Mapping[str, int] = field(default_factory=dict[str, int])
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    score: tuple[str, float, int] | None = None
    outcomes: Sequence[float] = ()
    epsilon: float | None = None
    client: str | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Form:
    """The form in which a card's directory holds a model.

    Attributes:
        words: what it is.
        library: the library that loads it, for the card's metadata.
        file: its main file, for forms that have one.
        paragraphs: further paragraphs, such as the comparison of an export with its source.
    """

    words: str = "an adapter in PEFT's format"
    library: str = "peft"
    file: str = ""
    paragraphs: Sequence[str] = ()


def run_facts(directory: Path, role: str) -> Facts:
    """Return what a run directory tells of the model of a role.

    Raises:
        UserError: a file of the run can't be read.
    """
    records: list[RoundRecord] = directories.read_records(directory)
    data: dict[str, Any] = directories.read_json(directory, directories.DATA) or {}
    outcomes: dict[str, dict[str, float]] = directories.read_json(directory, directories.OUTCOMES) or {}
    last = records[-1] if records else RoundRecord(0)
    found = list(outcomes.get(role, {}).values())
    mean = last.scores.get(role)
    labelled, test = sum(data.get("public", {}).values()), data.get("test", 0)
    return Facts(
        config=directories.read_config(directory),
        rounds=last.round,
        clients={client: sum(labels.values()) for client, labels in data.get("clients", {}).items()},
        sizes={"public, labelled": labelled, "public, unlabelled": data.get("unlabelled", 0), "test": test},
        score=None if mean is None else (str(data.get("metric", "score")), mean, len(found) or test),
        outcomes=found,
        epsilon=last.epsilon,
        notes=data.get("notes", ()),
    )


def write_card(place: Path, facts: Facts | None, form: Form = Form()) -> None:
    """Write the model card of a directory that holds a trained model.

    Args:
        place: the directory, with its `fedcollm.json`.
        facts: what is known of the training; None for an adapter whose run is somewhere else.
        form: the form of the model there.
    """
    write_atomically(place / CARD, card(read_portable(place), facts, form, (place / BASE).is_dir()))


def card(portable: Portable, facts: Facts | None, form: Form = Form(), has_base: bool = False) -> str:
    """Return a model card as Markdown.

    Args:
        portable: what travels with the model.
        facts: what is known of the training; None if nothing is.
        form: the form of the model.
        has_base: whether its base is in the directory `base` beside it.
    """
    license = license_of(portable.model)
    head = [
        "---",
        f"library_name: {form.library}",
        f"base_model: {Path(portable.model.source).name if is_local(portable.model) else portable.model.source}",
    ]
    head += [f"license: {license}"] * (license != _UNKNOWN) + ["tags: [fedcollm]", "---"]
    role = {"slm": "small language model" if portable.task.is_text else "small model"}.get(portable.role, "large model")
    whose = f" This copy belongs to client {facts.client}." if facts is not None and facts.client else ""
    intro = (
        f"This is {form.words}: the {role} ({portable.role.upper()}) of the run `{portable.run}`, tuned on the task "
        f"`{portable.task.name}` by federated co-tuning with fedcollm {portable.version} (FedCoLLM, arXiv 2411.11707)."
        f"{whose}"
    )
    parts = [
        "\n".join(head),
        f"# {portable.run}: {portable.role.upper()} for {portable.task.name}",
        intro,
        "## How it was trained",
        _list(_training(portable, facts)),
        *(["## Scores", *_scores(facts)] if facts is not None and facts.score is not None else []),
        *form.paragraphs,
        "## How to use it",
        *usage(portable, form.library, form.file, has_base),
        "## Intended use and warnings",
        _list(_warnings(portable, facts)),
    ]
    return "\n\n".join(parts) + "\n"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _training(portable: Portable, facts: Facts | None) -> list[str]:
    lines = [f"Base: {base_in_words(portable.model)}. License of the base: {license_of(portable.model)}."]
    adapter = portable.model.adapter
    lines.append(f"Adapter: {adapter.kind}, rank {adapter.rank}, α {adapter.alpha:g}; seed {portable.seed}.")
    if facts is None:
        return [*lines, "Rounds, data and scores: in the directory of the run, which is somewhere else."]
    config = facts.config
    lines.insert(0, f"Method: {_method(config)}, {facts.rounds} round{'s' * (facts.rounds != 1)}.")
    if facts.client is not None:
        lines.append(f"Private examples of this client: {sum(facts.clients.values()):,}, which never left it.")
    elif facts.clients:
        sizes = ", ".join(f"{client}: {count:,}" for client, count in facts.clients.items())
        lines.append(f"Private examples of {len(facts.clients)} clients, which never left them: {sizes}.")
    if facts.sizes:
        lines.append("Other examples: " + ", ".join(f"{count:,} {what}" for what, count in facts.sizes.items()) + ".")
    secure = config.federation.secure_aggregation.enabled
    lines.append(
        "Secure aggregation: "
        + (
            "yes, the server learned only sums of the clients' updates."
            if secure
            else "no, the server saw each update."
        )
    )
    lines.append(f"Differential privacy: {_privacy(facts)}.")
    return [*lines, *(f"Note: {note}." for note in facts.notes)]


def _method(config: RunConfig) -> str:
    """Return in words what the server did besides averaging."""
    settings = config.server.distillation
    if config.server.epochs == 0:
        return "federated averaging of the SLM's adapters"
    weights = settings.weights
    if not any(weights):
        return "federated averaging of the SLM's adapters, and training of both models on the public set"
    one_way = "" if all(weights) else ", one way"
    return f"federated averaging of the SLM's adapters, with distillation between LLM and SLM{one_way}"


def _privacy(facts: Facts) -> str:
    privacy = facts.config.federation.privacy
    if privacy is None:
        return "none"
    spent = "ε not known here" if facts.epsilon is None else f"ε = {facts.epsilon:.3g} spent"
    return f"{privacy.level} level, {spent} at δ = {privacy.delta:g}"


def _scores(facts: Facts) -> list[str]:
    assert facts.score is not None
    metric, mean, count = facts.score
    low_high = interval(mean, count, facts.outcomes)
    said = "" if low_high is None else f" (95 % interval {low_high[0]:.3f} to {low_high[1]:.3f})"
    return [
        f"`{metric}`: **{mean:.3f}**{said} on {count:,} test examples of this run, which nobody trained on, after "
        f"round {facts.rounds}. One run with one seed: another seed may differ by more than this interval."
    ]


def interval(mean: float, count: int, outcomes: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean over test examples: Wilson's for shares, else that of a normal mean.

    >>> [round(end, 3) for end in interval(0.5, 100, ())]
    [0.404, 0.596]
    >>> [round(end, 3) for end in interval(0.25, 4, [0.5, 0.5, 0.0, 0.0])]
    [-0.033, 0.533]

    Args:
        mean: the mean.
        count: number of examples.
        outcomes: the outcome of each; empty if only their mean is known.

    Returns:
        None without examples, or if the mean is not that of the outcomes (a rate over words, for one).
    """
    if not count or (outcomes and abs(sum(outcomes) / len(outcomes) - mean) > 1e-6):
        return None
    z = 1.959964
    if not all(value in (0, 1) for value in outcomes):
        variance = sum((value - mean) ** 2 for value in outcomes) / (len(outcomes) - 1)
        half = z * (variance / len(outcomes)) ** 0.5
        return mean - half, mean + half
    middle, scale = mean + z * z / (2 * count), 1 + z * z / count
    half = z * (mean * (1 - mean) / count + z * z / (4 * count * count)) ** 0.5
    return (middle - half) / scale, (middle + half) / scale


def base_in_words(model: ModelConfig) -> str:
    """Return how the base of an adapter is made.

    >>> base_in_words(ModelConfig(layers=[0, 2]))
    '`smollm2-135m`, cut to the layers 0, 2'
    """
    words = f"the local model `{Path(model.source).name}`" if is_local(model) else f"`{model.source}`"
    if isinstance(model.layers, int):
        words += f", cut to {model.layers} layers ({model.layer_choice})"
    elif model.layers is not None:
        words += f", cut to the layers {', '.join(map(str, model.layers))}"
    if model.mlp_share < 1:
        words += f", with {100 * model.mlp_share:g} % of each MLP's neurons"
    if model.heal is not None and model.heal.epochs:
        heal = model.heal
        words += (
            f", healed by {heal.objective.replace('_', ' ')} on {heal.size:,} pieces of the public text `{heal.text}`"
        )
    if model.pretrain_epochs:
        words += f", trained for {model.pretrain_epochs} epochs on the labelled public examples of the run"
    return words


def license_of(model: ModelConfig) -> str:
    """Return the license of a base: that of a shipped model, or the one that a model card in its directory names."""
    if model.source in _LICENSES:
        return _LICENSES[model.source]
    file = Path(model.source) / CARD
    if not file.is_file():
        return _UNKNOWN
    head = file.read_text(encoding="utf-8", errors="replace")[:4000]
    found = re.match(r"---\n(?:.*\n)*?license: *['\"]?([\w.+-]+)", head)
    return found.group(1) if found else _UNKNOWN


def _warnings(portable: Portable, facts: Facts | None) -> list[str]:
    private = facts is not None and facts.config.federation.privacy is not None
    repeats = (
        "It was tuned on private data under differential privacy, which bounds what it can repeat of them."
        if private
        else "It was tuned on private data, and can repeat parts of them: treat it as you treat the data."
    )
    return [
        f"Made for the task `{portable.task.name}`, and for inputs like those of its data. It was measured on nothing "
        "else, and not for bias, safety or harmful answers.",
        "Its answers can be wrong however sure they look; where they decide about people, a person must check them.",
        repeats,
    ]
