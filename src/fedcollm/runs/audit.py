"""Audit a client's own data, on the client's machine: nothing is sent to anybody."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from fedcollm.config import FormatConfig, RunConfig
from fedcollm.data.audit.comparison import Comparison
from fedcollm.data.audit.finders import FINDERS, find
from fedcollm.data.audit.findings import KINDS, Finding, Subject
from fedcollm.data.audit.profiles import read_profile
from fedcollm.data.audit.reading import read_subject
from fedcollm.data.client_files import client_form
from fedcollm.data.parts import PARTS, find_parts
from fedcollm.errors import UserError
from fedcollm.modalities.vision.images import SUFFIXES
from fedcollm.progress import say, track
from fedcollm.runs.audit_federation import compared_with
from fedcollm.runs.proposal import proposed_format

#: Records per batch of a trained model.
_AT_ONCE = 256


@dataclass(frozen=True)
class Options:
    """How data is audited.

    Attributes:
        config: configuration that says what the columns are, and whose SLM says how much text fits; None to guess.
        run: a finished run whose SLM judges the labels; None to judge them by a model trained on the data itself.
        finders: keys of `FINDERS`.
        rule: how labels are judged, a key of `labels.RULES`.
        profile: the `profile.json` of a federation, to compare the data with; None to compare it with nothing.
    """

    config: RunConfig | None = None
    run: Path | None = None
    finders: Collection[str] = tuple(FINDERS)
    rule: str = "noise_model"
    profile: Path | None = None


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        path: the data.
        form: which columns are what.
        subject: what was looked at.
        findings: what was found.
        notes: how the data was read, and what was not looked for, in sentences.
        comparison: the data beside the federation's; None without a profile.
    """

    path: Path
    form: FormatConfig
    subject: Subject = field(repr=False)
    findings: Sequence[Finding] = field(repr=False)
    notes: Sequence[str] = ()
    comparison: Comparison | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Kind of finding to how many there are, in the order of `KINDS`; kinds without a finding are left out."""
        found = Counter(one.kind for one in self.findings)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    @property
    def flagged(self) -> int:
        """Number of records with a finding."""
        return len({one.record for one in self.findings})

    @property
    def labels(self) -> dict[str, int]:
        """Class to its number of records, the most frequent first; nothing if answers are free."""
        if self.subject.free:
            return {}
        return dict(Counter(record.label for record in self.subject.records if record.label).most_common())

    @property
    def lengths(self) -> dict[str, int]:
        """Shortest, median, 95th percentile and longest text in characters; nothing if there is no text."""
        values = sorted(len(record.text) for record in self.subject.records if record.text)
        if not values:
            return {}
        last = len(values) - 1
        places = {"shortest": 0, "median": last // 2, "95 %": -(-95 * len(values) // 100) - 1, "longest": last}
        return {name: values[place] for name, place in places.items()}


def audit(path: Path, options: Options = Options()) -> Audit:
    """Look for what is wrong with a client's data.

    Args:
        path: a table, or a directory, as `fedcollm run` and `fedcollm deploy client` read them.
        options: how it is audited.

    Raises:
        UserError: the data as a whole can't be read, or a library or a trained model is missing.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or directory. Give a table or a directory of your own data.")
    profile = None if options.profile is None else read_profile(options.profile)
    form, notes = form_of(path, options)
    subject = replace(read_subject(path, form), rule=options.rule)
    if options.run is not None and "labels" in options.finders:
        subject = _judged_by(options.run, subject, path)
    if options.config is not None and subject.kind == "text" and "long" in options.finders:
        subject = _with_tokens(options.config, subject)
    others = [part for part in _parts(path, form) if part != "train"]
    if not subject.records:
        raise UserError(f"{path} has no records. Give a table with rows, or a folder of images.")
    compared = None if profile is None else compared_with(profile, path, form, subject)
    notes = [*notes, *_not_looked_for(subject, options, others)]
    return Audit(path, form, subject, find(subject, options.finders), notes, compared)


def _check_class_folders(path: Path) -> None:
    """Refuse a folder of nothing but class folders of images, for which a run needs a folder of the training part.

    Raises:
        UserError: says where to move the folders.
    """
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")] if path.is_dir() else []
    folders = [entry for entry in entries if entry.is_dir()]
    if len(folders) == len(entries) and any(
        file.suffix.lower() in SUFFIXES for folder in folders for file in folder.iterdir()
    ):
        raise UserError(
            f"{path} has images in folders, and no folder train. Move its class folders into {path / 'train'}."
        )


def form_of(path: Path, options: Options) -> tuple[FormatConfig, list[str]]:
    """Return which columns are what, and what was guessed.

    Raises:
        UserError: the configuration is missing where nothing can be guessed, or the table can't be read.
    """
    if options.config is not None:
        return client_form(options.config.task), []
    if options.run is not None:
        from fedcollm.runs.portable import read_portable
        from fedcollm.runs.predict import model_directory

        return client_form(read_portable(model_directory(options.run, "slm")).task), []
    if path.is_dir() and any((path / name).is_dir() for name in PARTS["train"]):
        return FormatConfig(), ["images in class folders"]
    _check_class_folders(path)
    found, said, _ = proposed_format(path)
    try:
        return FormatConfig.model_validate({name: value for name, value in found.items() if name != "group"}), said
    except ValidationError as error:
        raise UserError(f"{path}: {error.errors()[0]['msg']}. Give a configuration with --config.") from None


def _parts(path: Path, form: FormatConfig) -> list[str]:
    """Return the parts of the data."""
    return [] if form.is_folders or form.boxes is not None else list(find_parts(path).files)


def _not_looked_for(subject: Subject, options: Options, others: Sequence[str]) -> list[str]:
    """Return sentences about what an audit of this data could not look for."""
    notes = [f"only the training data is looked at, not {' and '.join(others)}"] if others else list[str]()
    judged = subject.kind in FINDERS["labels"].kinds and "labels" in options.finders
    if judged and subject.free:
        notes.append("wrong labels are not looked for, since answers are free or each row has choices of its own")
    if subject.kind == "text" and "long" in options.finders and subject.longest is None:
        notes.append(
            "texts that are too long were not looked for: only with --config is it known how much the SLM reads"
        )
    if subject.kind == "object_files":
        notes.append("boxes are not judged, only the images")
    return notes


def _with_tokens(config: RunConfig, subject: Subject) -> Subject:
    """Return a subject that knows how much text the SLM of a configuration reads."""
    from fedcollm.data.catalogue import build_modality
    from fedcollm.modalities.text.task import TextTask

    modality = build_modality(config.task, config.slm, config.slm, False)
    if not isinstance(modality, TextTask):
        return subject
    tokenizer = modality.tokenizer

    def count(text: str) -> int:
        return len(tokenizer(text, verbose=False)["input_ids"])

    return replace(subject, longest=modality.context_length, count_tokens=count)


def _judged_by(run: Path, subject: Subject, path: Path) -> Subject:
    """Return a subject with how likely the SLM of a run thinks each class is for each record.

    Raises:
        UserError: the run has no SLM, its answers are free, or a label is none of its classes.
    """
    from fedcollm.runs.predict import model_directory
    from fedcollm.runs.predictor import Predictor

    say("loading the SLM of the run")
    model = Predictor.load(model_directory(run, "slm"))
    classes = model.shared_choices
    if not classes:
        raise UserError(f"--run {run}: its rows share no choices, so that its model can't judge labels. Leave it out.")
    odd = next((one for one in subject.records if one.label is not None and one.label not in classes), None)
    if odd is not None:
        raise UserError(f"{odd.place}: the label {odd.label!r} is none of the classes of {run}. Correct it first.")
    usable = [i for i, one in enumerate(subject.records) if not one.fault and (one.text or one.source is not None)]
    found = np.full((len(subject.records), len(classes)), 1 / len(classes))
    starts = range(0, len(usable), _AT_ONCE)
    for start in track(starts, "judging labels", total=len(starts)):
        some = usable[start : start + _AT_ONCE]
        rows: list[Any] = [subject.records[i].raw for i in some]
        folder = subject.records[some[0]].file.parent if subject.records[some[0]].row else path
        for i, one in zip(some, model.predict(rows, folder), strict=True):
            found[i] = [one.probabilities[name] for name in classes]
    return replace(subject, probabilities=found, classes=classes)
