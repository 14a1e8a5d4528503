"""What travels with a trained adapter, so that it can be used on another machine: `fedcollm.json`.

It holds what turns rows into the model's input (the task with its columns, template and choices, and the facts that a
deployed client gets) and what makes the base again: its source, its layers, how it was healed, and digests of its
weights. It names no path of the machine that it was made on, except a source that is a directory.
"""

import json
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, ValidationError

from fedcollm.config import SCHEMA_VERSION, ModelConfig, RunConfig, TaskConfig
from fedcollm.config.base import Positive, Section
from fedcollm.config.loading import explain
from fedcollm.errors import UserError
from fedcollm.storage import replacing, write_atomically

#: The file beside an adapter.
PORTABLE = "fedcollm.json"

#: Directory beside an adapter that holds its base, if the base goes along.
BASE = "base"

#: Files beside a base model that turn texts, images or recordings into its input.
_INPUT_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)


class Portable(Section):
    """What travels with an adapter.

    Attributes:
        schema_version: version of the configuration's sections.
        version: version of fedcollm that wrote it.
        run: name of the run.
        role: `slm` or `llm`.
        seed: seed of the run, from which random weights of a base follow.
        task: the section `task`, without the path of the data.
        model: the section of the role's model, as the run was configured.
        facts: `Modality.facts` of the role.
        digests: digests of the base's configuration and of its weights in the dtype of the run.
        batch_size: examples per batch with which the run scored.
        merged: whether the directory holds a whole model, into which the adapter was merged, and no adapter.
    """

    schema_version: int = SCHEMA_VERSION
    version: str = Field(default_factory=lambda: metadata.version("fedcollm"))
    run: str
    role: Literal["slm", "llm"]
    seed: int
    task: TaskConfig
    model: ModelConfig
    facts: dict[str, Any] = Field(default_factory=dict[str, Any])
    digests: dict[str, str] = Field(default_factory=dict[str, str])
    batch_size: Positive
    merged: bool = False


def portable_of(config: RunConfig, role: str, facts: Mapping[str, Any], digests: Mapping[str, str]) -> Portable:
    """Return what travels with the adapter of a role.

    Args:
        config: the run's configuration.
        role: `slm` or `llm`.
        facts: `Modality.facts` of the role.
        digests: digests of the base, as `identity.base_digests` names them.
    """
    return Portable(
        run=config.name,
        role=cast(Any, role),
        seed=config.seed,
        task=config.task.model_copy(update={"path": None}),
        model=getattr(config, role),
        facts=dict(facts),
        digests=dict(digests),
        batch_size=config.evaluation.batch_size,
    )


def write_portable(directory: Path, portable: Portable) -> None:
    """Write what travels with the adapter in a directory."""
    text = json.dumps(portable.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_atomically(directory / PORTABLE, text + "\n")


def copy_input_files(base: str, directory: Path) -> None:
    """Copy what reads a model's input, such as its tokenizer, from the directory of its base; a hub id keeps it."""
    for pattern in _INPUT_FILES if Path(base).is_dir() else ():
        for file in sorted(Path(base).glob(pattern)):
            if file.is_file() and file.resolve().is_relative_to(Path(base).resolve()):  # no link to somebody's secrets
                with replacing(directory / file.name) as temporary:
                    shutil.copyfile(file, temporary)


def has_input_files(directory: Path) -> bool:
    """Return whether a directory holds what reads a model's input, such as a tokenizer."""
    return any(file.is_file() for pattern in _INPUT_FILES for file in directory.glob(pattern))


def read_portable(directory: Path) -> Portable:
    """Return what travels with the adapter in a directory.

    Raises:
        UserError: the file is missing or malformed, or another version of fedcollm wrote it.
    """
    file = directory / PORTABLE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{directory} holds no trained model: {PORTABLE} is missing. Give a run directory, or the directory of an "
            "adapter that fedcollm wrote."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} can't be read: {error}. Restore it from a copy.") from error
    version = cast("dict[str, Any]", values).get("schema_version") if isinstance(values, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{file} was written by another version of fedcollm: its schema_version is {version!r:.40}, "
            f"and this version reads {SCHEMA_VERSION}. Use the version that wrote it."
        )
    try:
        return Portable.model_validate(values)
    except (ValidationError, ValueError, RecursionError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{file} is not a file that fedcollm wrote: {reason}. Restore it from a copy.") from error
