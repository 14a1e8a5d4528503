"""Predict the rows of a table with a run's trained models, in batches that a killed process does not lose."""

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedcollm.data.inputs import Inputs
from fedcollm.errors import UserError
from fedcollm.modalities.predictions import Found, Prediction
from fedcollm.progress import say, track
from fedcollm.runs.output_tables import (
    SPREADSHEETS,
    check_output,
    with_predictions,
    without_formulas,
    write_table,
)
from fedcollm.runs.portable import PORTABLE
from fedcollm.runs.predictor import Predictor
from fedcollm.storage import append_to, write_atomically, writing

#: Names of both roles, in the order in which they predict.
ROLES = ("slm", "llm")


@dataclass(frozen=True)
class Options:
    """How rows are predicted.

    Attributes:
        roles: the roles whose models predict; the probabilities of several are averaged.
        batch_size: examples per batch; None for that with which the run scored.
        encoding: encoding of a text table; None for that of the run's own tables.
        prefix: what the names of the added columns begin with.
        device: where the models run, as in the configuration.
    """

    roles: Sequence[str] = ("slm",)
    batch_size: int | None = None
    encoding: str | None = None
    prefix: str = ""
    device: str = "auto"


def model_directory(place: Path, role: str) -> Path:
    """Return the directory of a role's adapter in a run directory, or the place itself if it is such a directory.

    Raises:
        UserError: there is no adapter of that role.
    """
    if (place / PORTABLE).is_file():
        return place
    directory = place / "adapters" / role
    if not (directory / PORTABLE).is_file():
        raise UserError(
            f"{place} has no trained model of role {role}: there is no {directory / PORTABLE}. Give a run directory "
            "with at least one finished round, or the directory of an adapter that fedcollm wrote."
        )
    return directory


def predict_table(place: Path, source: Path, out: Path, options: Options = Options()) -> int:
    """Write the rows of a table with a model's predictions, and return their number.

    Finished batches are kept beside `out` until all are done, so that the same call after an interruption goes on.

    Args:
        place: a run directory, or the directory of an adapter.
        source: the table, with the columns of the run's task; it needs no answers, and all columns are kept.
        out: the table to write, whose ending says in which format.
        options: how rows are predicted.

    Raises:
        UserError: a file or a row is invalid, or answers that are free are to be averaged.
    """
    check_output(out)
    key = _key(place, source, options)
    kept: _Kept | None = None
    by_role: list[list[Prediction]] = []
    inputs, shared = None, ()
    for role in options.roles:
        say(f"loading the {role.upper()}")
        model = Predictor.load(model_directory(place, role), options.device)
        inputs = model.read(source, options.encoding)
        if len(options.roles) > 1 and not model.has_choices:
            raise UserError("--ensemble averages probabilities, but the answers of this task are free. Leave it out.")
        shared = model.shared_choices
        kept = kept or _Kept(out.with_name(f".{out.name}.predictions"), key)  # only now: a refused table leaves no file
        by_role.append(_predicted(role, model, inputs, options.batch_size, kept))
    assert inputs is not None
    assert kept is not None
    rows = with_predictions(inputs.rows, averaged(by_role), shared, options.prefix)
    if out.suffix.lower() in SPREADSHEETS:
        rows, count = without_formulas(rows, options.prefix)
        if count:
            say(f"{count} predictions have a quote (') before them, or a spreadsheet would take them for formulas")
    with writing(out.parent):
        write_table(out, rows)
        kept.remove()
    return len(rows)


def averaged(by_role: Sequence[Sequence[Prediction]]) -> list[Prediction]:
    """Return the predictions whose probabilities are the means of those of several models.

    >>> one, other = Prediction("a", {"a": 0.75, "b": 0.25}), Prediction("b", {"a": 0.0, "b": 1.0})
    >>> averaged([[one], [other]])
    [Prediction(text='b', probabilities={'a': 0.375, 'b': 0.625}, objects=None)]
    """
    if len(by_role) == 1:
        return list(by_role[0])
    return [_mean(ones) for ones in zip(*by_role, strict=True)]


def _mean(ones: Sequence[Prediction]) -> Prediction:
    names = list(ones[0].probabilities)
    means = {name: sum(one.probabilities[name] for one in ones) / len(ones) for name in names}
    return Prediction(max(names, key=lambda name: means[name]), means)


def _predicted(role: str, model: Predictor, inputs: Inputs, batch_size: int | None, kept: "_Kept") -> list[Prediction]:
    """Return the prediction of each example, of which some may be kept from before."""
    found = kept.read(role)
    if found:
        say(f"{len(found)} of {len(inputs.examples)} rows were predicted before")
    batches = model.batches(inputs.examples, batch_size)
    left = [batch for batch in batches if not all(i in found for i in batch)]
    for batch in track(left, f"predicting with the {role.upper()}", len(batches), len(batches) - len(left)):
        new = dict(zip(batch, model.predict_examples([inputs.examples[i] for i in batch]), strict=True))
        kept.add(role, new)
        found |= new
    return [found[i] for i in range(len(inputs.examples))]


class _Kept:
    """Predictions that are kept while others are made: JSON lines, of which the first is a digest of what they are of.

    Args:
        file: the file.
        key: the digest.
    """

    def __init__(self, file: Path, key: str):
        self._file = file
        self._lines: list[dict[str, Any]] = []
        lines = _own_lines(file)
        if lines and lines[0] == key:
            self._lines = _complete(lines[1:])
        with writing(file.parent):
            write_atomically(file, "\n".join([key, *map(json.dumps, self._lines)]) + "\n")

    def read(self, role: str) -> dict[int, Prediction]:
        """Return the predictions of a role by the position of their row."""
        return {line["row"]: _prediction(line["prediction"]) for line in self._lines if line["role"] == role}

    def add(self, role: str, predictions: Mapping[int, Prediction]) -> None:
        """Keep the predictions of a batch."""
        with writing(self._file.parent), os.fdopen(append_to(self._file), "a", encoding="utf-8") as stream:
            for row, prediction in predictions.items():
                print(json.dumps({"role": role, "row": row, "prediction": asdict(prediction)}), file=stream)

    def remove(self) -> None:
        """Remove the file, since all is done."""
        self._file.unlink(missing_ok=True)


def _own_lines(file: Path) -> list[str]:
    """Return the lines of a file that this user wrote; none if it is missing, a link, or somebody else's."""
    try:
        state = file.lstat()
    except OSError:
        return []
    if not stat.S_ISREG(state.st_mode) or (hasattr(os, "geteuid") and state.st_uid != os.geteuid()):
        return []
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def _complete(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Return the lines up to the first one that is damaged, as the last one of a killed process may be."""
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            values = json.loads(line)
            _prediction(values["prediction"])
        except (ValueError, KeyError, TypeError):
            break
        found.append(values)
    return found


def _prediction(values: Mapping[str, Any]) -> Prediction:
    objects = values["objects"]
    return Prediction(
        values["text"], dict(values["probabilities"]), None if objects is None else tuple(Found(**o) for o in objects)
    )


def _key(place: Path, source: Path, options: Options) -> str:
    """Return a digest of the table, the models and how they predict."""
    files = [source]
    for role in options.roles:
        directory = model_directory(place, role)
        files += [directory / PORTABLE, *sorted(directory.glob("*.safetensors"))]
    digests: list[Any] = []
    for file in files:
        try:
            with file.open("rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError as error:
            raise UserError(f"{file} can't be read: {error}. Give a file that exists.") from error
    settings = [list(options.roles), options.batch_size, options.encoding]
    return hashlib.sha256(json.dumps([digests, settings]).encode()).hexdigest()
