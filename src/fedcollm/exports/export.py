"""Take a trained model away: write it in a format of other tools, and compare it with what was trained."""

import difflib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedcollm.errors import UserError
from fedcollm.exports.check import Check, Readings, compared, in_words, read, tell
from fedcollm.exports.footprint import Footprint, measure, size_of
from fedcollm.exports.formats import FORMATS, Format, with_base
from fedcollm.exports.source import Source
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.task import TextTask
from fedcollm.progress import say
from fedcollm.runs.card import CARD, Form, card, run_facts
from fedcollm.runs.portable import BASE
from fedcollm.storage import write_atomically, writing

#: File with the comparison, beside an export.
CHECK = "check.json"


@dataclass(frozen=True)
class ExportOptions:
    """How a trained model is exported.

    Attributes:
        role: `slm` or `llm`.
        format: a key of `FORMATS`.
        quantization: one of the format's own; None for its first one, which rounds least.
        with_base: whether the base goes along with an adapter.
        margin: largest loss of the main metric that is allowed; None for 0.02, or none below 8 bits.
        examples: a file of examples to compare on; None for the run's own test examples.
        check: whether the export is compared with its source at all.
        footprint: whether memory and speed are measured, in processes of their own.
    """

    role: str = "slm"
    format: str = "adapter"
    quantization: str | None = None
    with_base: bool = False
    margin: float | None = None
    examples: Path | None = None
    check: bool = True
    footprint: bool = True


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        directory: where it is.
        file: its main file.
        check: how it compares with its source; None if it was not compared.
    """

    directory: Path
    file: Path
    check: Check | None


def export(place: str | Path, out: str | Path, options: ExportOptions = ExportOptions()) -> Exported:
    """Export a trained model, and compare it with its source on the run's own test examples.

    Args:
        place: a run directory, or the directory of an adapter.
        out: a directory that does not exist yet, or is empty.
        options: the format, and how it is compared.

    Raises:
        UserError: an option is wrong, there is no such model, or it can't be written in that format.
    """
    form, target = _format(options), Path(out)
    quantization = _quantization(form, options)
    source = Source.find(Path(place), options.role)
    _refuse_filled(target)
    before, examples = _source_readings(source, options)
    try:
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
            say(f"writing {options.format} ({quantization})")
            file = form.write(source, target, quantization, examples)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    check = None
    if before is not None:
        after = _export_readings(source, form, file, examples, options.footprint)
        check = compared((before, after), len(examples), _margin(form, options))
        tell(check)
    _write_texts(source, form, file, check)
    return Exported(target, file, check)


def _format(options: ExportOptions) -> Format:
    """Return the format that is asked for.

    Raises:
        UserError: there is none of that name, or its base can't go along.
    """
    if options.format not in FORMATS:
        near = difflib.get_close_matches(options.format, FORMATS, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(FORMATS)}."
        raise UserError(f"--format: {options.format!r} is no format of an export. {hint}")
    if options.with_base and options.format != "adapter":
        raise UserError(
            f"--with-base is for --format adapter: with --format {options.format}, the base is part of the model "
            "anyway. Leave it out."
        )
    found = FORMATS[options.format]
    return with_base(found) if options.with_base else found


def _quantization(form: Format, options: ExportOptions) -> str:
    """Return the quantization that is asked for, or the format's first one.

    Raises:
        UserError: the format has no such quantization.
    """
    wanted = options.quantization
    if wanted is not None and wanted not in form.quantizations:
        known = f"Choose one of {', '.join(form.quantizations)}." if len(form.quantizations) > 1 else "Leave it out."
        raise UserError(f"--quantization: {wanted!r} is none of --format {options.format}. {known}")
    return wanted or next(iter(form.quantizations))


def _margin(form: Format, options: ExportOptions) -> float | None:
    return options.margin if options.margin is not None else form.quantizations[_quantization(form, options)]


def _refuse_filled(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out: {out} exists already, and is no empty directory. Choose another one.")


def _source_readings(source: Source, options: ExportOptions) -> tuple[Readings | None, Sequence[Any]]:
    """Return what the source says of the test examples, and the examples; None if they are not to be compared."""
    if not options.check and options.format != "onnx":
        return None, []
    say(f"loading the {source.portable.role.upper()}")
    model = source.load()
    examples = source.tests(model.modality, options.examples)
    if not options.check or not examples:
        if options.check:
            say("there are no test examples beside this adapter, so the export is not compared. Give --examples FILE")
        return None, examples
    found = read(model.modality, model.model, examples, source.portable.batch_size, "scoring the source")
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.model.parameters())
    prompt = _prompt(model.modality, examples) if options.footprint else []
    del model  # one model in memory at a time
    return replace(found, footprint=_footprint("torch", source.directory, prompt, size)), examples


def _export_readings(source: Source, form: Format, file: Path, examples: Sequence[Any], measured: bool) -> Readings:
    """Return what an export says of the test examples."""
    modality, model = form.load(source, file)
    found = read(modality, model, examples, source.portable.batch_size, "scoring the export")
    split = _split_otherwise(modality, model, examples)
    del model
    place = file if form.lone else file.parent
    size = size_of(*file.parent.glob(f"{file.name}*")) if form.lone else size_of(place)
    prompt = _prompt(modality, examples) if measured else []
    return replace(found, footprint=_footprint(form.runner, place, prompt, size), split_otherwise=split)


def _split_otherwise(modality: Modality, model: Any, examples: Sequence[Any]) -> int | None:
    if not isinstance(modality, TextTask):
        return None
    from fedcollm.exports.llama_cpp import split_otherwise

    return split_otherwise(model, modality.tokenizer, [example.prompt for example in examples])


def _prompt(modality: Modality, examples: Sequence[Any]) -> list[int]:
    """Return the tokens of the first example's prompt; none for a model that is no language model."""
    if not isinstance(modality, TextTask):
        return []
    return list(modality.encoded(examples[0]).prompt)


def _footprint(runner: str, place: Path, prompt: Sequence[int], size: int) -> Footprint:
    return measure(runner, place, prompt, size) if prompt else Footprint(size)


def _write_texts(source: Source, form: Format, file: Path, check: Check | None) -> None:
    """Write the comparison and the model card."""
    out = file.parent
    if check is not None:
        write_atomically(out / CHECK, json.dumps(check.to_json(), indent=1) + "\n")
    facts = None if source.run is None else run_facts(source.run, source.portable.role)
    words = Form(form.words, form.library, file.name, in_words(check))
    write_atomically(out / CARD, card(source.portable, facts, words, (out / BASE).is_dir()))
