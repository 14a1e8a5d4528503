"""A trained model, ready to be asked: the adapter of a run on its base, with all that turns rows into its input.

It is built from the files beside the adapter alone (`portable`), by the code that a deployed client is built by, and it
predicts by the code that scores.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedcollm.config import ModelConfig
from fedcollm.data.catalogue import asked_form, build_client_modality
from fedcollm.data.choices import listed
from fedcollm.data.inputs import Inputs, columns_of, inputs_of, load_inputs
from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.modalities.predictions import Prediction
from fedcollm.modalities.text.examples import SOME_ANSWER, TextExample
from fedcollm.modalities.text.task import TextTask
from fedcollm.models.adapters import check_rank, load_adapter, resolve_device
from fedcollm.models.fused.patch import fuse
from fedcollm.runs.build_models import adapted, base_seed, load_base, set_precision
from fedcollm.runs.identity import base_digests
from fedcollm.runs.portable import BASE, Portable, has_input_files, read_portable
from fedcollm.runs.shrink import shrunk
from fedcollm.training.batches import like_sized

if TYPE_CHECKING:
    import peft


#: What makes an adapter one whose file holds all of it, which is read from there.
_PLAIN = {"start": None, "core": False, "freeze_a": False}


@dataclass(frozen=True)
class Predictor:
    """A trained model, ready to be asked.

    Attributes:
        portable: what travels with the adapter.
        modality: makes batches, and reads the model's outputs.
        model: the base with the adapter, or the model that both were merged into, in evaluation mode.
    """

    portable: Portable
    modality: Modality = field(repr=False)
    model: nn.Module = field(repr=False)

    @classmethod
    def load(cls, directory: str | Path, device: str = "auto", *, fused: bool = True) -> "Predictor":
        """Load a trained model.

        Args:
            directory: an adapter's directory, such as `adapters/slm` of a run directory.
            device: where it will run, as in the configuration.
            fused: whether it is made fast by `fuse`, after which the adapter can't be merged into its base. If not,
                the base is not quantized either.

        Raises:
            UserError: the directory holds no adapter that fedcollm wrote, or its base can't be found or made again.
        """
        place, where = Path(directory), resolve_device(device)
        portable = read_portable(place)
        saved = _saved_base(place, portable)
        section = _section(portable, saved, where)
        if not fused:
            section = section.model_copy(update={"quantization": "none"})
        reads = section if has_input_files(saved) else portable.model  # a base alone does not say what it reads
        modality = build_client_modality(portable.task, reads, portable.facts)
        set_precision([section], where)
        network = load_base(section, portable.role, modality, saved, where, base_seed(portable.seed, portable.role))
        model = network.requires_grad_(False) if portable.merged else _with_adapter(place, network, section, modality)
        _check_base(place, portable, model)
        if fused and not portable.merged:
            fuse(model)
        return cls(portable, modality, model.eval())

    def predict(self, rows: Sequence[Mapping[str, Any]], folder: str | Path = ".") -> list[Prediction]:
        """Return the prediction of each row.

        Args:
            rows: column to value, as in the task's tables. They need no answers.
            folder: the folder that paths of images and recordings are relative to.

        Raises:
            UserError: a row lacks a column, or is invalid.
        """
        examples = inputs_of(self.portable.task, rows, Path(folder), self.classes).examples
        found: dict[int, Prediction] = {}
        for batch in self.batches(examples):
            found |= zip(batch, self.predict_examples([examples[i] for i in batch]), strict=True)
        return [found[i] for i in range(len(examples))]

    def read(self, path: Path, encoding: str | None = None) -> Inputs:
        """Return the rows of a table, and an example of each.

        Args:
            path: a table, as `data.tables.ENDINGS` lists them.
            encoding: encoding of text; by default that of the run's own tables.

        Raises:
            UserError: as in `load_inputs`.
        """
        return load_inputs(self.portable.task, path, self.classes, encoding)

    def batches(self, examples: Sequence[Any], batch_size: int | None = None) -> list[list[int]]:
        """Return batches of the positions of examples, by size; they are those of scoring.

        Args:
            examples: examples of the task.
            batch_size: examples per batch; by default that with which the run scored.
        """
        return like_sized(self.modality, examples, batch_size or self.portable.batch_size)

    def predict_examples(self, examples: Sequence[Any]) -> list[Prediction]:
        """Return the predictions of one batch of examples.

        Raises:
            UserError: a probability is NaN.
        """
        with torch.inference_mode():
            found = self.modality.predict(self.model, examples)
        if any(math.isnan(value) for one in found for value in one.probabilities.values()):
            raise UserError(
                f"the model of the run {self.portable.run!r:.100} gives probabilities that are not numbers (NaN), so "
                "that it predicts nothing. Restore its files from a copy, or set dtype: float32 and train it again."
            )
        return found

    def generate(self, prompt: str) -> str:
        """Return what a language model answers freely to a prompt, by greedy decoding.

        The prompt is taken as it is, or put into the chat template if the run did so.

        Raises:
            UserError: the model is no language model.
        """
        if not isinstance(self.modality, TextTask):
            raise UserError(f"the models of {self.portable.task.name} are no language models. Use predict.")
        example = TextExample("1", prompt, (SOME_ANSWER,), None, (SOME_ANSWER,))
        with torch.inference_mode():
            return self.modality.generated(self.model, [example])[0]

    @property
    def columns(self) -> list[str]:
        """The columns that a row needs."""
        return columns_of(self.portable.task)

    @property
    def has_choices(self) -> bool:
        """Whether an answer is one of several, each with a probability."""
        return self.portable.task.no_choices is None

    @property
    def shared_choices(self) -> tuple[str, ...]:
        """The choices that all rows have; empty if answers are free, or rows have choices of their own."""
        if not self.has_choices:
            return ()
        choices = asked_form(self.portable.task).choices
        return self.classes or (listed(choices, "task.format.choices").texts if isinstance(choices, list) else ())

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of images or recordings; empty for text."""
        return tuple(getattr(self.modality, "classes", ()))


def _with_adapter(place: Path, network: nn.Module, section: ModelConfig, modality: Modality) -> "peft.PeftModel":
    check_rank(section.adapter, place)
    model = adapted(network, section.adapter, modality)
    load_adapter(model, place)
    return model


def _saved_base(place: Path, portable: Portable) -> Path:
    """Return the directory of a base that was saved: beside its adapter, or in the run directory; it may be missing."""
    if portable.merged:
        return place
    beside, in_run = place / BASE, place.parent.parent / BASE / portable.role
    if beside.is_dir() or not portable.model.pretrain_epochs:
        return beside
    if not in_run.is_dir():
        raise UserError(
            f"{place}: the run {portable.run!r} trained the base of this adapter itself, and it is neither in {beside} "
            f"nor in {in_run}. Export the adapter with its base: fedcollm export RUN --with-base."
        )
    return in_run


def _section(portable: Portable, saved: Path, device: torch.device) -> ModelConfig:
    """Return the section of a base, which is healed again unless it was saved or the cache has it."""
    section = portable.model.model_copy(update={"adapter": portable.model.adapter.model_copy(update=_PLAIN)})
    if (saved / "config.json").is_file():
        changes: dict[str, Any] = {"source": str(saved), "layers": None, "layer_choice": "even", "mlp_share": 1.0}
        return section.model_copy(update={**changes, "heal": None})
    return shrunk(section, device)


def _check_base(place: Path, portable: Portable, model: nn.Module) -> None:
    """Refuse a base that is not the one that the adapter was trained on.

    Raises:
        UserError: the base is another one.
    """
    now, known = dict(base_digests(portable.role, model)), portable.digests
    changed = [name for name, digest in now.items() if known.get(name, digest) != digest]
    if changed and portable.merged:
        raise UserError(
            f"{place}: this is not the model that was exported there: {', '.join(changed)} differ. Export it again."
        )
    if changed:
        raise UserError(
            f"{place}: the adapter was trained on another base than {portable.model.source} is here: "
            f"{', '.join(changed)} differ. Put the base of the run there, or export the adapter with its base: "
            "fedcollm export RUN --with-base."
        )
