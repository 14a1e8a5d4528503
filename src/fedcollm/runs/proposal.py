"""Propose a configuration for a person's own table: read it, guess what its columns are, and choose sizes that fit."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcollm.config import FormatConfig, RunConfig, TaskConfig
from fedcollm.config.loading import load_config
from fedcollm.data.catalogue import load_pool
from fedcollm.data.content import decode, read_content
from fedcollm.data.csv_rows import DELIMITERS
from fedcollm.data.parts import find_parts
from fedcollm.data.pool import Pool
from fedcollm.data.proposals import Wishes, columns_of, propose_format
from fedcollm.data.tables import Reading, ending_of, file_rows
from fedcollm.errors import UserError

#: What an example is to the preset whose models suit it.
_PRESETS: Mapping[str, str] = {
    "text": "icd10",
    "image_files": "photos",
    "audio_files": "speech_commands",
    "speech_files": "whisper",
}

#: Encodings that are tried where a file is not UTF-8, for those languages that are often stored in another one.
_ENCODINGS = ("cp932", "euc_jp", "gb18030", "big5", "cp949", "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1256")

_CLIENTS, _MOST_CLIENTS = 4, 16
_FEWEST_PER_CLIENT = 4
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
    files = find_parts(path).files["train"]
    encoding = _encoding(files[0])
    reading = Reading(encoding, _delimiter(files[0], encoding))
    rows = [row for file in files for _, row in file_rows(file, reading)]
    if not rows:
        raise UserError(f"{path} has no rows. Give a table with a header and rows.")
    columns = columns_of(rows)
    form, findings = propose_format(columns, wishes)
    if encoding != "utf-8":
        form["encoding"] = encoding
        findings = [f"the text seems to be in {encoding}", *findings]
    if any(column.name == form.get("answer") and column.filled < len(rows) for column in columns):
        form["skip_unanswered"] = True
    groups = next((len(column.values) for column in columns if column.name == form.get("group")), 0)
    task = {"path": str(path), "format": form} | _clients(groups)
    checked = TaskConfig.model_validate(task)
    base = preset or _PRESETS[FormatConfig.model_validate(form).kind]
    start = load_config(base)
    sizes = propose_sizes(load_pool(checked, 0), checked, labels_some=start.server.pseudo_labels is not None)
    values = start.model_dump(mode="json") | {"name": path.stem or "mine", "task": task | sizes}
    found = f"{len(rows)} rows in {', '.join(file.name for file in files)}"
    return Proposal(load_config(values), [found, *findings, f"models and training are those of the preset {base}"])


def _encoding(file: Path) -> str:
    """Return the encoding of a table: UTF-8 if its bytes are that, else the likeliest one.

    Raises:
        UserError: no encoding fits.
    """
    if ending_of(file).startswith((".parquet", ".arrow")):
        return "utf-8"
    content = read_content(file)
    try:
        decode(content, "utf-8", file)
    except UserError:
        import charset_normalizer

        likeliest = charset_normalizer.from_bytes(content, cp_isolation=list(_ENCODINGS)).best()
        if likeliest is None:
            raise
        return likeliest.encoding
    return "utf-8"


def _delimiter(file: Path, encoding: str) -> str | None:
    """Return the delimiter that gives the header of a CSV file most columns; None where the file is no CSV."""
    if not ending_of(file).startswith((".csv", ".tsv")):
        return None
    header = decode(read_content(file), encoding, file).lstrip().splitlines()[:1]
    return max(
        DELIMITERS, key=lambda sign: max((len(fields) for fields in csv.reader(header, delimiter=sign)), default=0)
    )


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
    count = len({example.content for example in pool.train})
    test = min(_MOST["test_size"], count // 5 if pool.test is None else len(pool.test))
    public = min(_MOST["public_size"], count // 4 if pool.public is None else len(pool.public))
    left = count - test * (pool.test is None) - public * (pool.public is None)
    private = min(left // clients, _MOST["private_size"])
    if private < _FEWEST_PER_CLIENT:
        raise UserError(
            f"{config.path}: {count} different rows are too few for {clients} clients, a public part and a test "
            f"set. Give at least {2 * _FEWEST_PER_CLIENT * clients}."
        )
    spare = left - private * clients if pool.unlabelled is None else len(pool.unlabelled)
    if pool.public is not None and pool.unlabelled is None:
        spare = len(pool.public) - public
    unlabelled = 0 if config.no_choices else min(spare, _MOST["unlabelled_size"])
    if labels_some and not unlabelled:
        public, unlabelled = public - public // 2, public // 2
    return {"private_size": private, "public_size": public, "unlabelled_size": unlabelled, "test_size": test}
