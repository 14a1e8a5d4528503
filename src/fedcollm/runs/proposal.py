"""Propose a configuration for a person's own table: read it, guess what its columns are, and choose sizes that fit."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcollm.config import FormatConfig, RunConfig, TaskConfig
from fedcollm.config.loading import load_config
from fedcollm.data.catalogue import load_pool
from fedcollm.data.content import decode
from fedcollm.data.likely_encodings import likely_encoding, sample_word
from fedcollm.data.parts import find_parts, labelled_part
from fedcollm.data.pool import Pool
from fedcollm.data.proposals import Wishes, propose_format
from fedcollm.data.table_columns import columns_of
from fedcollm.data.tables import Reading, file_rows, is_text
from fedcollm.errors import UserError
from fedcollm.modalities.bounded import read_bytes

#: What an example is to the preset whose models suit it.
_PRESETS: Mapping[str, str] = {
    "text": "icd10",
    "image_files": "photos",
    "audio_files": "speech_commands",
    "speech_files": "whisper",
}

_SERVER = "there is no training data: this is for `fedcollm deploy init`, where the clients have their own"

_CLIENTS, _MOST_CLIENTS = 4, 16
_FEWEST_CLIENTS, _FEWEST_PER_CLIENT = 2, 4
_MOST = {"test_size": 300, "public_size": 320, "unlabelled_size": 1280, "private_size": 320}


@dataclass(frozen=True)
class Proposal:
    """A configuration that runs on a person's own data.

    Attributes:
        config: the configuration.
        findings: what was found and guessed, in sentences.
    """

    config: RunConfig
    findings: list[str]


def propose(path: Path, preset: str | None = None, wishes: Wishes = Wishes()) -> Proposal:
    """Look at a table, and return a configuration that runs on it.

    Args:
        path: a file, or a directory with a training file and possibly others.
        preset: the preset with the models and the training; by default, the one that suits the kind of data.
        wishes: the columns that the person names.

    Raises:
        UserError: the data can't be read, is too small, or its columns don't tell what to learn.
    """
    path = path.expanduser().resolve()
    form, said, groups = proposed_format(path, wishes)
    base = preset or _PRESETS[FormatConfig.model_validate(form).kind]
    start = load_config(base)
    task, sizes, fewer = _sized({"path": str(path), "format": form}, groups, start.server.pseudo_labels is not None)
    values = start.model_dump(mode="json") | {"name": path.stem or "mine", "task": task | sizes}
    if fewer and groups:  # the last finding is that there are groups
        said = said[:-1]
    return Proposal(load_config(values), [*said, *fewer, f"models and training are those of the preset {base}"])


def proposed_format(path: Path, wishes: Wishes = Wishes()) -> tuple[dict[str, Any], list[str], int]:
    """Look at a table, and return the section `task.format` for it, what was found and guessed, and how many groups.

    Args:
        path: a file, or a directory with a training file and possibly others.
        wishes: the columns that the person names.

    Raises:
        UserError: the data can't be read, or its columns don't tell what to learn.
    """
    files = labelled_part(find_parts(path).files)
    encoding, told = _encoding(files[0])
    rows = [row for file in files for _, row in file_rows(file, Reading(encoding))]
    if not rows:
        raise UserError(f"{path} has no rows. Give a table with a header and rows.")
    columns = columns_of(rows)
    try:
        form, findings = propose_format(columns, wishes)
    except UserError as error:
        raise UserError(f"{files[0]}: {error}") from None
    if encoding != "utf-8":
        form["encoding"] = encoding
    if any(column.name == form.get("answer") and column.filled < len(rows) for column in columns):
        form["skip_unanswered"] = True
    groups = next((len(column.values) for column in columns if column.name == form.get("group")), 0)
    return form, [f"{len(rows)} rows in {', '.join(file.name for file in files)}", *told, *findings], groups


def _encoding(file: Path) -> tuple[str, list[str]]:
    """Return the encoding of a table, which is UTF-8 if its bytes are that, else the likeliest one, and what it tells.

    Raises:
        UserError: no encoding fits.
    """
    if not is_text(file):
        return "utf-8", []
    content = read_bytes(file)
    try:
        decode(content, "utf-8", file)
    except UserError:
        encoding = likely_encoding(content)
        if encoding is None:
            raise
        word = sample_word(decode(content, encoding, file))
        sample = f", as in {word!r}" if word else ""
        return encoding, [f"the text seems to be in {encoding}{sample}; if that is wrong, set task.format.encoding"]
    return "utf-8", []


def _sized(
    task: dict[str, Any], groups: int, labels_some: bool
) -> tuple[dict[str, Any], dict[str, int], Sequence[str]]:
    """Return the section of the task, the sizes in it, and what is said where the rows are for fewer clients.

    Args:
        task: its path and format.
        groups: number of groups; 0 if there are none.
        labels_some: see `propose_sizes`.

    Raises:
        UserError: there are too few examples.
    """
    task = task | _clients(groups)
    config = TaskConfig.model_validate(task)
    pool = load_pool(config, 0)
    form = {key: value for key, value in task["format"].items() if key != "group"}
    if not pool.train:
        return task | _clients(0) | {"format": form}, propose_sizes(pool, config, labels_some), [_SERVER]
    wanted, count = config.clients or _CLIENTS, _count(pool)
    fitting = _left(pool, count) // _FEWEST_PER_CLIENT
    if fitting >= wanted:
        return task, propose_sizes(pool, config, labels_some), []
    fitting = max(fitting, _FEWEST_CLIENTS)
    group = task["format"].get("group")
    reason = f"one for each value of {group}" if groups == wanted else "which are proposed otherwise"
    said = (
        f"{count} different rows are too few for {wanted} clients, {reason}: here are {fitting} clients, with rows at "
        "random"
    )
    task = task | {"format": form, "clients": fitting, "partition": {"kind": "iid"}}
    return task, propose_sizes(pool, TaskConfig.model_validate(task), labels_some), [said]


def _clients(groups: int) -> dict[str, Any]:
    """Return the number of clients and the partition: a client for each group, if there are groups."""
    if groups < 2:
        return {"clients": _CLIENTS, "partition": {"kind": "iid"}}
    return {"clients": min(groups, _MOST_CLIENTS), "partition": {"kind": "natural"}}


def propose_sizes(pool: Pool, config: TaskConfig, labels_some: bool = False) -> dict[str, int]:
    """Return the sizes of the parts: a fifth of the data to score with, a quarter for D_a, the rest for the clients.

    What a part of its own holds is used as it is. None of the sizes is above that of a first try, which takes minutes.

    Args:
        pool: the examples.
        config: the section of the task, without sizes.
        labels_some: whether a part of D_a must be unlabelled, because the run labels it.

    Raises:
        UserError: there are too few examples.
    """
    clients = config.clients or _CLIENTS
    count = _count(pool)
    test, public = _test_and_public(pool, count)
    left = _left(pool, count)
    private = min(left // clients if pool.train else _MOST["private_size"], _MOST["private_size"])
    if private < _FEWEST_PER_CLIENT:
        enough = next(n for n in itertools.count(count) if _left(pool, n) >= _FEWEST_PER_CLIENT * clients)
        raise UserError(
            f"{config.path}: {count} different rows are too few for {clients} clients, a public part and a test "
            f"set. Give at least {enough}."
        )
    spare = left - private * clients if pool.unlabelled is None else len(pool.unlabelled)
    if pool.public is not None and pool.unlabelled is None:
        spare = len(pool.public) - public
    unlabelled = 0 if config.no_choices else min(spare, _MOST["unlabelled_size"])
    if labels_some and not unlabelled:
        public, unlabelled = public - public // 2, public // 2
    return {"private_size": private, "public_size": public, "unlabelled_size": unlabelled, "test_size": test}


def _count(pool: Pool) -> int:
    """Return the number of distinct training examples."""
    return len({example.content for example in pool.train})


def _test_and_public(pool: Pool, count: int) -> tuple[int, int]:
    """Return the sizes of the test set and of D_a, given the number of training examples."""
    test = min(_MOST["test_size"], count // 5 if pool.test is None else len(pool.test))
    return test, min(_MOST["public_size"], count // 4 if pool.public is None else len(pool.public))


def _left(pool: Pool, count: int) -> int:
    """Return how many of a number of training examples are left for the clients."""
    test, public = _test_and_public(pool, count)
    return count - test * (pool.test is None) - public * (pool.public is None)
