"""The trained model that is exported, and the examples that it is compared on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import nn

from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.models.quantized import round_trip
from fedcollm.runs import directory as directories
from fedcollm.runs.identity import check, digest_of
from fedcollm.runs.portable import Portable, copy_input_files, read_portable
from fedcollm.runs.predict import model_directory
from fedcollm.runs.predictor import Predictor

#: Where a model is computed while it is exported and compared: the runtimes of the exported files run there too.
DEVICE = "cpu"


@dataclass(frozen=True)
class Source:
    """A trained model that is exported.

    Attributes:
        directory: the directory of its adapter.
        portable: what travels with the adapter.
        run: the run directory that it is in; None for an adapter somewhere else.
    """

    directory: Path
    portable: Portable
    run: Path | None = field(default=None)

    @classmethod
    def find(cls, place: Path, role: str) -> "Source":
        """Return the trained model of a role in a run directory, or the one whose directory is given.

        Raises:
            UserError: there is none, or it is a whole model that was exported before.
        """
        directory = model_directory(place, role)
        portable = read_portable(directory)
        if portable.merged:
            raise UserError(
                f"{directory} is a model that was exported before, whose adapter was merged. Give the run directory, "
                "or the directory of the adapter."
            )
        for run in (place, directory.parent.parent):
            if directory == run / "adapters" / portable.role and (run / directories.CONFIG).is_file():
                return cls(directory, portable, run)
        return cls(directory, portable)

    def load(self) -> Predictor:
        """Return the trained model as it is used, made fast."""
        return Predictor.load(self.directory, DEVICE)

    def network(self) -> tuple[Modality, nn.Module]:
        """Return the modality, and the base network with the adapter merged into it, in float32.

        Raises:
            UserError: the method of the adapter has no merged form.
        """
        model = Predictor.load(self.directory, DEVICE, fused=False)
        adapted: Any = model.model
        if self.portable.model.quantization != "none":  # the weights that the adapter was trained on
            round_trip(adapted, self.portable.model.quantization)
        adapted = adapted.float()
        merge: Callable[[], nn.Module] | None = getattr(adapted, "merge_and_unload", None)
        try:
            if merge is None:
                raise AttributeError("no merge_and_unload")
            network = merge()
        except (AttributeError, NotImplementedError, ValueError) as error:
            raise UserError(
                f"{self.directory}: an adapter of the kind {self.portable.model.adapter.kind} can't be merged into its "
                f"base ({error}). Export it with --format adapter."
            ) from error
        return model.modality, network.eval().requires_grad_(False)

    def base(self) -> tuple[Modality, nn.Module]:
        """Return the modality, and the base network as it was before the adapter was added, in its dtype."""
        model = Predictor.load(self.directory, DEVICE, fused=False)
        return model.modality, cast(Any, model.model).unload()

    def copy_input_files(self, modality: Modality, out: Path) -> None:
        """Write what reads a model's input, such as its tokenizer, into a directory."""
        copy_input_files(str(self.directory), out)
        tokenizer: Any = getattr(modality, "tokenizer", None)
        if tokenizer is not None and not (out / "tokenizer_config.json").is_file():
            tokenizer.save_pretrained(out)

    def tests(self, modality: Modality, examples: Path | None) -> Sequence[Any]:
        """Return the examples to compare on: those of a file, or the test examples of the run; none if it has none.

        Args:
            modality: reads the file.
            examples: a file that `fedcollm evaluate --write-examples` wrote.

        Raises:
            UserError: the file or the run's data can't be read, or the data is not that of the run.
        """
        if examples is not None:
            return modality.read_examples(examples)
        if self.run is None:
            return []
        config = directories.read_config(self.run)
        try:
            found = split(load_pool(config.task, config.seed), config.task, config.seed).test
        except UserError as error:
            raise UserError(
                f"{error} To export without comparing the result on these examples, give --no-check."
            ) from error
        check(self.run, config, {"examples: test": digest_of(found)})
        return found
