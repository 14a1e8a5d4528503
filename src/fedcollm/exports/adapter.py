"""An adapter in PEFT's own format, with what reads its input and, if asked for, its base."""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from fedcollm.errors import UserError
from fedcollm.exports.merged import save_network
from fedcollm.exports.source import DEVICE, Source
from fedcollm.modalities.base import Modality
from fedcollm.runs.portable import BASE, PORTABLE, copy_input_files
from fedcollm.runs.predictor import Predictor
from fedcollm.storage import write_atomically

#: The files of an adapter in PEFT's format.
_ADAPTER, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write_adapter(source: Source, out: Path, with_base: bool) -> Path:
    """Write an adapter with all that it takes to use it, and return the file of its weights.

    Args:
        source: the trained model.
        out: an empty directory.
        with_base: whether its base goes along.

    Raises:
        UserError: the base is on the hub, and can't be copied.
    """
    for name in (_ADAPTER, _CONFIG, PORTABLE):
        shutil.copyfile(source.directory / name, out / name)
    if not with_base:
        source.copy_input_files(Predictor.load(source.directory, DEVICE).modality, out)
        return out / _ADAPTER
    _write_base(source, out / BASE)
    settings: dict[str, Any] = json.loads((out / _CONFIG).read_text(encoding="utf-8"))
    write_atomically(out / _CONFIG, json.dumps(settings | {"base_model_name_or_path": BASE}, indent=2) + "\n")
    copy_input_files(str(out / BASE), out)
    source.copy_input_files(Predictor.load(out, DEVICE).modality, out)
    return out / _ADAPTER


def _write_base(source: Source, place: Path) -> None:
    """Write the base of an adapter: a copy of its directory, or what fedcollm made of a source, in the base's dtype."""
    beside, given = source.directory / BASE, Path(source.portable.model.source)
    in_run = source.directory.parent.parent / BASE / source.portable.role
    section, copied = source.portable.model, None
    if beside.is_dir():
        copied = beside
    elif section.pretrain_epochs:
        copied = in_run
    elif given.is_dir() and not section.cut and section.heal is None:
        copied = given
    if copied is not None and not source.portable.task.is_text:
        shutil.copytree(copied, place)
        copy_input_files(section.source, place)
        return
    modality, network = source.base()
    if copied is None and modality.trained_modules(network):
        raise UserError(
            f"--with-base: the base {section.source} of this adapter has a fresh head and comes from the model hub. "
            "Leave out --with-base, or give the run a local directory of the model as its source."
        )
    place.mkdir()
    save_network(network, place, section.source)
    source.copy_input_files(modality, place)


def load_adapter(source: Source, file: Path) -> tuple[Modality, nn.Module]:
    """Return the modality and the model of an exported directory."""
    loaded = Predictor.load(file.parent, DEVICE)
    return loaded.modality, loaded.model
