"""Plan the healed bases of a run: what each is made of, and which entry of the cache it is. Nothing is healed here."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fedcollm.config import HealingConfig, ModelConfig, RunConfig
from fedcollm.data.catalogue import base_models
from fedcollm.data.modality_builders import BaseModels
from fedcollm.data.texts import load_text, pieces
from fedcollm.errors import SECTION, UserError, in_section
from fedcollm.modalities.text.examples import TextExample
from fedcollm.models.adapters import resolve_device, resolve_dtype
from fedcollm.models.pretrained import base_directory, load_config, stem, text_sizes
from fedcollm.models.pruning import kept_layers, neuron_count
from fedcollm.runs.directory import check_healed, recorded_bases
from fedcollm.storage import cache_directory

#: Pieces of text that are held out to measure the fit.
HELD_OUT = 96
#: Version of the way in which models are shrunk, part of the key of the cache.
_VERSION = 1
#: What decides whether something is cut from a base: its numbers of layers and of neurons per MLP.
_NUMBERS = ("num_hidden_layers", "intermediate_size")


@dataclass(frozen=True)
class Plan:
    """A base that is to be cut and healed, or that the cache holds already.

    Attributes:
        key: name of its entry of the cache: a digest of the whole model, the settings and the text.
        place: directory or hub id of the whole model.
        texts: the pieces of text; the first `HELD_OUT` are for measurements.
    """

    key: str
    place: str
    texts: Sequence[TextExample] = field(repr=False)

    @property
    def entry(self) -> Path:
        """Return the directory of the healed base, which exists once it is made."""
        return cache_directory() / self.key


def plan_base(section: ModelConfig, device: torch.device) -> Plan:
    """Return the plan of one base, without healing it.

    Args:
        section: a model's section with `heal`.
        device: the device on which the base is healed, since its arithmetic decides the last bits.

    Raises:
        UserError: the model or the text can't be read, the text is too short, or nothing is cut.
    """
    settings = section.heal
    assert settings is not None
    refuse_uncut(section)
    texts, place = _texts(settings), base_directory(section.source, None)
    _check_cut(section, _shape(section.source, Path(place)))
    key = f"{stem(section.source, Path(place))}-healed-{_digest(section, texts, device)}"
    return Plan(key, place, texts)


def _shape(source: str, place: Path) -> Any:
    """Return the configuration of a base, or an object with the two numbers of it that `_check_cut` reads.

    They are taken from its file where they have their usual names, because transformers takes seconds to import.
    """
    with contextlib.suppress(OSError, ValueError):
        values = json.loads((place / "config.json").read_text(encoding="utf-8"))
        if "text_config" not in values and values.keys() >= {*_NUMBERS}:
            return SimpleNamespace(**{name: values[name] for name in _NUMBERS})
    return text_sizes(load_config(source))


def _texts(settings: HealingConfig) -> list[TextExample]:
    """Return as many pieces of the text as healing takes, with those that are held out.

    Raises:
        UserError: the text can't be read, or is too short.
    """
    texts = pieces(load_text(settings.text), settings.words, settings.seed)
    needed, most = settings.size + HELD_OUT, len(texts) - HELD_OUT
    if most >= settings.size:
        return texts[:needed]
    need = f"{SECTION}heal.size {settings.size} needs {needed}" if most > 0 else f"at least {HELD_OUT + 1} are needed"
    lower = f"Lower {SECTION}heal.size to {most} or less, give" if most > 0 else "Give"
    raise UserError(
        f"{SECTION}heal.text: {settings.text} has {len(texts)} pieces of 2 to {settings.words} words, and {need} "
        f"({HELD_OUT} are held out). {lower} a longer text, or lower {SECTION}heal.words, which cuts long paragraphs "
        "into more pieces."
    )


def refuse_uncut(section: ModelConfig, cut: bool | None = None) -> None:
    """Refuse to distill a whole model into itself, which would only disturb its weights.

    Args:
        section: a model's section with `heal`.
        cut: whether something is cut from the base; by default, whether the section says that something may be.

    Raises:
        UserError: nothing is cut.
    """
    assert section.heal is not None
    if section.heal.objective == "distillation" and not (bool(section.cut) if cut is None else cut):
        raise UserError(
            f"{SECTION}heal: nothing is cut from {section.source}, so there is nothing to heal. Set {SECTION}heal: "
            f"null, or cut it: set {SECTION}layers to some of its layers, or {SECTION}mlp_share to less than 1."
        )


def _check_cut(section: ModelConfig, shape: Any) -> None:
    """Refuse layers that the base does not have, and layers and neurons that are all of those that it has.

    Raises:
        UserError: as above.
    """
    total, width = (getattr(shape, name, None) for name in _NUMBERS)
    fewer = section.layers is not None
    if isinstance(total, int) and section.layers is not None:
        fewer = len(kept_layers(total, section.layers)) < total
    all_neurons = section.mlp_share == 1 or (isinstance(width, int) and neuron_count(width, section.mlp_share) == width)
    refuse_uncut(section, fewer or not all_neurons)


def plan_bases(config: RunConfig, modality: BaseModels | None = None) -> dict[str, Plan]:
    """Return the plan of each base that a run needs healed, by role.

    A control that needs no model has none. Nor has the LLM of a run without distillation, since nothing uses it.

    Args:
        config: the run's configuration.
        modality: the user's own modality; by default the one of the task.

    Raises:
        UserError: a model or its text can't be read, or the task's models are not language models.
    """
    if config.control is not None and not config.control.needs_model:
        return {}
    models = {"slm": config.slm} | ({"llm": config.llm} if config.server.epochs else {})
    device, plans = resolve_device(config.device), dict[str, Plan]()
    for role, section in models.items():
        if section.heal is None:
            continue
        if not (modality or base_models(config.task)).causal_lm:
            raise UserError(
                f"{role}.heal: the models of {config.task.name} are no language models, so they can't be healed on "
                f"text. Set {role}.heal: null."
            )
        with in_section(role):
            plans[role] = plan_base(section, device)
    return plans


def base_names(config: RunConfig, modality: BaseModels | None = None) -> dict[str, str]:
    """Return role to the name of the healed base that a run with this configuration would get now.

    Raises:
        UserError: as in `plan_bases`.
    """
    return {role: plan.key for role, plan in plan_bases(config, modality).items()}


def on_recorded_bases(config: RunConfig, directory: Path) -> RunConfig:
    """Return a run's configuration with the healed bases that the run had, as directories in the cache.

    The text may have changed since, or be gone: the name of an entry stands for all that the base was made of. A base
    that the cache no longer holds is left to be made again.

    Args:
        config: the run's configuration.
        directory: the run directory.

    Raises:
        UserError: a base is not in the cache, and what it would be made of now is not what it was made of.
    """
    recorded = recorded_bases(directory) or {}
    entries = {role: cache_directory() / Path(name).name for role, name in recorded.items()}
    kept = {role: entry for role, entry in entries.items() if getattr(config, role).heal and entry.is_dir()}
    sections = {role: as_directory(getattr(config, role), entry) for role, entry in kept.items()}
    found = config.model_copy(update=sections)
    check_healed(directory, {role: recorded[role] for role in kept} | base_names(found))
    return found


def as_directory(section: ModelConfig, entry: Path) -> ModelConfig:
    """Return the section of a model whose cut and healed base lies in a directory."""
    return section.model_copy(
        update={"source": str(entry), "layers": None, "layer_choice": "even", "mlp_share": 1.0, "heal": None}
    )


def _digest(section: ModelConfig, texts: Sequence[TextExample], device: torch.device) -> str:
    settings = section.model_dump(mode="json", include={"layers", "layer_choice", "mlp_share", "heal"})
    settings["heal"] |= {"text": [[text.prompt, text.choices[0]] for text in texts]}
    made_of = [_VERSION, settings, str(resolve_dtype("auto", device)), device.type]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]
