"""Make a small model out of a large one: cut it, heal it on public text, and keep the result in the cache.

Everything else sees the result as a model in a directory: `shrunk` returns a section of the configuration whose source
is that directory.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.data.catalogue import BaseModels, base_models
from fedcollm.data.texts import load_text, pieces
from fedcollm.errors import UserError
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.models import pair_facts
from fedcollm.modalities.text.task import TextTask
from fedcollm.models.adapters import resolve_device, resolve_dtype
from fedcollm.models.pretrained import (
    CACHE,
    base_directory,
    cached,
    from_pretrained,
    load_causal_lm,
    stem,
    transformers_class,
)
from fedcollm.models.pruning import KEPT_LAYERS, kept_layers, layer_count, prune_layers, prune_neurons
from fedcollm.progress import say
from fedcollm.storage import cache_directory, one_at_a_time, write_atomically, writing
from fedcollm.training.healing import Checkpoint, Fit, heal, measure, text_batches
from fedcollm.training.shrinking import LAYER_CHOICES, neurons

#: File of a shrunk model that says how it was made and how well it fits.
REPORT = "shrink.json"
#: Pieces of text that are held out to measure the fit, and pieces on which layers and neurons are ranked.
HELD_OUT, RANKING = 96, 48
#: Version of the way in which models are shrunk, part of the key of the cache.
_VERSION = 1


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

    A control that needs no model gets its configuration back as it is. The LLM of a run without distillation stays as
    it is too, since nothing uses it.

    Args:
        config: the run's configuration.
        modality: the user's own modality; by default the one of the task.

    Raises:
        UserError: a model or its text can't be read, or the task's models are not language models.
    """
    if config.control is not None and not config.control.needs_model:
        return config
    roles, device = ["slm", "llm"] if config.server.epochs else ["slm"], resolve_device(config.device)
    for role in roles:
        if getattr(config, role).heal is not None and not (modality or base_models(config.task)).causal_lm:
            raise UserError(
                f"{role}.heal: the models of {config.task.name} are no language models, so they can't be healed on "
                f"text. Set {role}.heal: null."
            )
    return config.model_copy(update={role: shrunk(getattr(config, role), device) for role in roles})


def shrunk(section: ModelConfig, device: torch.device) -> ModelConfig:
    """Return the section of a model, with the cut and healed base as its source.

    The base is made once and cached under a digest of everything that it is made of: the whole model, the settings and
    the text. A section without `heal` is returned as it is.

    Raises:
        UserError: the model or the text can't be read, or the text is too short.
    """
    if section.heal is None:
        return section
    texts = pieces(load_text(section.heal.text), section.heal.words, section.heal.seed)
    needed = section.heal.size + HELD_OUT
    if len(texts) < needed:
        raise UserError(
            f"heal.text: {section.heal.text} has {len(texts)} pieces of 2 to {section.heal.words} words, and heal.size "
            f"{section.heal.size} needs {needed} ({HELD_OUT} are held out). Lower heal.size, or give a longer text."
        )
    place = base_directory(section.source, None)
    key = f"{stem(section.source, Path(place))}-healed-{_digest(section, texts[:needed], device)}"
    unfinished = cache_directory() / f".unfinished-{key}"
    with one_at_a_time(cache_directory() / key, CACHE):
        made = cached(key, lambda target: _make(section, texts[:needed], device, target, unfinished))
    shutil.rmtree(unfinished, ignore_errors=True)
    return section.model_copy(
        update={"source": str(made), "layers": None, "layer_choice": "even", "mlp_share": 1.0, "heal": None}
    )


def shrink_report(directory: Path) -> ShrinkReport:
    """Return the report of a model that `shrunk` made."""
    return ShrinkReport.from_json((directory / REPORT).read_text(encoding="utf-8"))


def save_report(directory: Path, report: ShrinkReport) -> None:
    """Write the report of a shrunk model."""
    write_atomically(directory / REPORT, report.to_json() + "\n")


def _digest(section: ModelConfig, texts: Sequence[TextExample], device: torch.device) -> str:
    settings = section.model_dump(mode="json", include={"layers", "layer_choice", "mlp_share", "heal"})
    settings["heal"] |= {"text": [[text.prompt, text.choices[0]] for text in texts]}
    made_of = [_VERSION, settings, str(resolve_dtype("auto", device)), device.type]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]


def _make(
    section: ModelConfig, texts: Sequence[TextExample], device: torch.device, target: Path, unfinished: Path
) -> None:
    """Cut and heal a model, and save it with its tokenizer and a report."""
    settings, place = section.heal, base_directory(section.source, None)
    assert settings is not None
    teacher = load_causal_lm(place, resolve_dtype("auto", device), "default").to(device).eval()
    student = load_causal_lm(place, torch.float32, "default").to(device)
    facts = pair_facts(ModelConfig(source=section.source), ModelConfig(source=section.source), False).slm
    modality = TextTask("text", facts.tokenizer, facts.vocabulary_size, facts.context_length, start=facts.start)
    held, trained = (text_batches(modality, part, settings.batch_size) for part in (texts[:HELD_OUT], texts[HELD_OUT:]))
    before = _size(student)
    ranking = text_batches(modality, texts[HELD_OUT : HELD_OUT + RANKING], settings.batch_size)
    layers, count = _cut(section, modality, (teacher, student), ranking)
    whole, cut = measure(modality, teacher, None, held), measure(modality, student, teacher, held)
    say(f"healing {section.source} ({_described(section)}) once on {settings.size} pieces of {settings.text}")
    with writing(cache_directory(), CACHE):
        unfinished.mkdir(parents=True, exist_ok=True)
        heal(modality, student, teacher, texts[HELD_OUT:], settings, Checkpoint(unfinished / "state.safetensors"))
    rows = sum(modality.labelled(batch) for batch in trained)
    sizes = {"whole": before, "cut": _size(student)}
    report = ShrinkReport(layers, count, sizes, rows, whole, cut, measure(modality, student, teacher, held))
    setattr(student.config, KEPT_LAYERS, layers)
    student.save_pretrained(target)
    from_pretrained(transformers_class("AutoTokenizer"), place).save_pretrained(target)
    save_report(target, report)
    say(f"healed: KL per token {report.cut.kl:.2f} -> {report.healed.kl:.2f} nats")


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


def _size(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())
