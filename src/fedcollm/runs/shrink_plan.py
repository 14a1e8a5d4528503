"""Plan the healed bases of a run: what each is made of, and which entry of the cache it is. Nothing is healed here."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.data.catalogue import BaseModels, base_models
from fedcollm.data.texts import load_text, pieces
from fedcollm.errors import UserError
from fedcollm.modalities.text.examples import TextExample
from fedcollm.models.adapters import resolve_device, resolve_dtype
from fedcollm.models.pretrained import base_directory, cache_directory, stem
from fedcollm.runs.directory import check_healed, recorded_bases

#: Pieces of text that are held out to measure the fit.
HELD_OUT = 96
#: Version of the way in which models are shrunk, part of the key of the cache.
_VERSION = 1


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
        UserError: the model or the text can't be read, or the text is too short.
    """
    settings = section.heal
    assert settings is not None
    texts = pieces(load_text(settings.text), settings.words, settings.seed)
    needed = settings.size + HELD_OUT
    if len(texts) < needed:
        raise UserError(
            f"heal.text: {settings.text} has {len(texts)} pieces of 2 to {settings.words} words, and heal.size "
            f"{settings.size} needs {needed} ({HELD_OUT} are held out). Lower heal.size, or give a longer text."
        )
    place = base_directory(section.source, None)
    key = f"{stem(section.source, Path(place))}-healed-{_digest(section, texts[:needed], device)}"
    return Plan(key, place, texts[:needed])


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
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
