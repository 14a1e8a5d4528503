"""Make a small model out of a large one: cut it, heal it on public text, and keep the result in the cache.

Everything else sees the result as a model in a directory: `shrunk` returns a section of the configuration whose source
is that directory.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.data.modality_builders import BaseModels
from fedcollm.errors import UserError, in_section
from fedcollm.modalities.text.models import pair_facts
from fedcollm.modalities.text.style import Style
from fedcollm.modalities.text.task import TextTask
from fedcollm.models.adapters import resolve_device, resolve_dtype
from fedcollm.models.cache import CACHE, cached
from fedcollm.models.pretrained import from_pretrained, load_causal_lm, transformers_class
from fedcollm.models.pruning import KEPT_LAYERS, kept_layers, layer_count, prune_layers, prune_neurons, rebuilt
from fedcollm.progress import say
from fedcollm.runs.shrink_plan import HELD_OUT, Plan, as_directory, plan_base, plan_bases
from fedcollm.storage import cache_directory, make_directory, write_atomically, writing
from fedcollm.training.healing import Checkpoint, Fit, heal, measure, text_batches
from fedcollm.training.shrinking import LAYER_CHOICES, neurons

#: File of a shrunk model that says how it was made and how well it fits.
REPORT = "shrink.json"
#: KL per token, in nats, below which two models are one: float32 rounds to about 1e-7.
_ROUNDING = 1e-4
#: Pieces of text on which layers and neurons are ranked.
RANKING = 48


@dataclass(frozen=True)
class ShrinkReport:
    """What became of a model that was cut and healed, measured on held-out pieces of the text.

    Attributes:
        layers: indices of the layers that were kept.
        neurons: neurons of each MLP; None if all were kept.
        parameters: number of parameters: `whole` and `cut`.
        text_rows: tokens of text in one epoch of healing, without the first word of each piece.
        whole: fit of the model that was cut.
        cut: fit before healing.
        healed: fit afterward.
    """

    layers: list[int]
    neurons: int | None
    parameters: Mapping[str, int]
    text_rows: int
    whole: Fit
    cut: Fit
    healed: Fit

    def to_json(self) -> str:
        """Return the report as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ShrinkReport":
        """Return the report that `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        values |= {name: Fit(**values[name]) for name in ("whole", "cut", "healed")}
        return cls(**values)


def with_shrunk_models(config: RunConfig, modality: BaseModels | None = None) -> RunConfig:
    """Return a configuration in which the models that are cut and healed are directories; make them if necessary.

    Args:
        config: the run's configuration.
        modality: the user's own modality; by default the one of the task.

    Raises:
        UserError: as in `plan_bases`, or a base can't be cut.
    """
    device, sections = resolve_device(config.device), dict[str, ModelConfig]()
    for role, plan in plan_bases(config, modality).items():
        with in_section(role):
            sections[role] = _made(getattr(config, role), plan, device)
    return config.model_copy(update=sections)


def shrunk(section: ModelConfig, device: torch.device) -> ModelConfig:
    """Return the section of a model, with the cut and healed base as its source.

    The base is made once and cached under a digest of everything that it is made of: the whole model, the settings and
    the text. A section without `heal` is returned as it is.

    Raises:
        UserError: the model or the text can't be read, the text is too short, or nothing is cut.
    """
    return section if section.heal is None else _made(section, plan_base(section, device), device)


def _made(section: ModelConfig, plan: Plan, device: torch.device) -> ModelConfig:
    """Make a planned base unless the cache holds it, and return the section with it as its source."""
    unfinished = cache_directory() / f".unfinished-{plan.key}"
    made = cached(plan.key, lambda target: _make(section, plan, device, target, unfinished))
    shutil.rmtree(unfinished, ignore_errors=True)
    return as_directory(section, made)


def shrink_report(directory: Path) -> ShrinkReport:
    """Return the report of a model that `shrunk` made.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return ShrinkReport.from_json((directory / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory / REPORT} can't be read ({error}), so {directory} is no complete shrunk model. Delete "
            f"{directory}, and it is made again."
        ) from error


def save_report(directory: Path, report: ShrinkReport) -> None:
    """Write the report of a shrunk model."""
    write_atomically(directory / REPORT, report.to_json() + "\n")


def _make(section: ModelConfig, plan: Plan, device: torch.device, target: Path, unfinished: Path) -> None:
    """Cut and heal a model, and save it with its tokenizer and a report."""
    settings, place, texts = section.heal, plan.place, plan.texts
    assert settings is not None
    teacher = load_causal_lm(place, resolve_dtype("auto", device), "default").to(device).eval()
    student = load_causal_lm(place, torch.float32, "default").to(device)
    facts = pair_facts(ModelConfig(source=section.source), ModelConfig(source=section.source), False).slm
    sizes, style = (facts.vocabulary_size, facts.context_length), Style(learns_end=False)  # a piece is no answer
    modality = TextTask("text", facts.tokenizer, *sizes, start=facts.start, style=style)
    held, trained = (text_batches(modality, part, settings.batch_size) for part in (texts[:HELD_OUT], texts[HELD_OUT:]))
    before = _size(student)
    ranking = text_batches(modality, texts[HELD_OUT : HELD_OUT + RANKING], settings.batch_size)
    layers, count = _cut(section, modality, (teacher, student), ranking)
    student = rebuilt(student)
    whole, cut = measure(modality, teacher, None, held), measure(modality, student, teacher, held)
    say(f"healing {section.source} ({_described(section)}) once on {settings.size} pieces of {settings.text}")
    with writing(cache_directory(), CACHE):
        make_directory(unfinished)
        heal(modality, student, teacher, texts[HELD_OUT:], settings, Checkpoint(unfinished / "state.safetensors"))
    rows = sum(modality.labelled(batch) for batch in trained)
    sizes = {"whole": before, "cut": _size(student)}
    report = ShrinkReport(layers, count, sizes, rows, whole, cut, measure(modality, student, teacher, held))
    setattr(student.config, KEPT_LAYERS, layers)
    student.save_pretrained(target)
    _check_saved(section, modality, student, ranking[:1], target)
    from_pretrained(transformers_class("AutoTokenizer"), place).save_pretrained(target)
    save_report(target, report)
    say(_outcome(section, report))


def _cut(
    section: ModelConfig, modality: TextTask, models: tuple[Any, Any], batches: Sequence[Any]
) -> tuple[list[int], int | None]:
    """Cut the second of two equal models in place, by what the first one does to a text.

    Returns:
        The indices of the kept layers, and the number of neurons that each MLP has left; None if it has all.
    """
    whole, cut = models
    total = layer_count(whole)
    layers = kept_layers(total, section.layers or total)
    if isinstance(section.layers, int):
        layers = LAYER_CHOICES[section.layer_choice](modality, whole, batches, section.layers)
    prune_layers(cut, layers)
    if section.mlp_share == 1:
        return layers, None
    kept = neurons(modality, cut, batches, section.mlp_share)
    prune_neurons(cut, kept)
    return layers, len(kept[0])


def _described(section: ModelConfig) -> str:
    layers = "all layers" if section.layers is None else f"layers: {section.layers} ({section.layer_choice})"
    return layers + (f", {section.mlp_share:g} of the neurons" if section.mlp_share < 1 else "")


def _check_saved(section: ModelConfig, modality: TextTask, model: Any, batches: Sequence[Any], target: Path) -> None:
    """Refuse a model that predicts something else once it is loaded again: what is saved is not what was measured.

    Raises:
        UserError: the predictions differ by more than rounding.
    """
    again = load_causal_lm(str(target), torch.float32, "default").to(model.device).eval()
    kl = measure(modality, again, model, batches).kl
    if kl is None or not kl < _ROUNDING:
        raise UserError(
            f"model source {section.source!r} can't be shrunk: once the healed model is saved and loaded again, it "
            f"predicts something else (KL per token {kl:.2g} nats). Choose another model."
        )


def _outcome(section: ModelConfig, report: ShrinkReport) -> str:
    """Say what healing did, and plainly so if it did harm. To predict the text instead may raise the KL."""
    cut, healed, settings = report.cut.kl or 0.0, report.healed.kl or 0.0, section.heal
    nats = f"KL per token {cut:.2f} -> {healed:.2f} nats"
    if settings is None or settings.objective != "distillation" or healed <= cut:
        return f"healed: {nats}"
    return (
        f"healing did harm: {nats} on text that was held out. Set another heal.learning_rate (now "
        f"{settings.learning_rate:g}), more text (heal.size, now {settings.size}), or heal.epochs: 0 to only cut."
    )


def _size(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())
