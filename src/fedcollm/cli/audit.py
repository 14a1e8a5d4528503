"""The command `fedcollm audit`: what is wrong with a client's own data, found on the client's machine."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fedcollm.cli.options import Json, Quiet, argument, option
from fedcollm.errors import UserError

if TYPE_CHECKING:
    from fedcollm.data.audit.comparison import Comparison
    from fedcollm.runs.audit import Audit, Options

Names = Annotated[str | None, option("--only", metavar="a,b", help="look for these only: labels, personal, ...")]

_EXAMPLES = 3  # findings of a kind that the summary quotes
_SIGNS = 100


def audit(
    data: Annotated[Path, argument(metavar="DATA", help="a table, or a directory, as a run reads it")],
    config: Annotated[
        Path | None, option("--config", help="configuration that says what the columns are; default: guess")
    ] = None,
    run: Annotated[Path | None, option("--run", help="run directory whose small model judges the labels")] = None,
    out: Annotated[Path | None, option("--out", help="directory for audit.html and findings.csv")] = None,
    only: Names = None,
    without: Annotated[str | None, option("--without", metavar="a,b", help="look for all but these")] = None,
    federation: Annotated[
        Path | None, option("--federation", help="profile.json of a run: compare labels, lengths and copies with it")
    ] = None,
    rule: Annotated[str, option("--rule", help="how labels are judged: noise_model or confident_learning")] = (
        "noise_model"
    ),
    fixes: Annotated[
        Path | None, option("--apply", help="a findings.csv: write a copy of DATA with its fixes; look for nothing")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Look for what is wrong with your own data: labels, duplicates, personal data, ... Nothing leaves this machine."""
    from fedcollm.cli.terminal import output, screen
    from fedcollm.progress import shown

    if not data.exists():
        raise UserError(f"{data}: no such file or directory. Give a table or a directory of your own data.")
    if fixes is not None and federation is not None:
        raise UserError(f"--federation {federation} has no effect with --apply, which looks for nothing. Leave it out.")
    if fixes is not None and out is not None:
        raise UserError(f"--out {out} has no effect with --apply: the copy is written beside {data}. Leave it out.")
    with shown(screen(quiet or as_json)):
        options = replace(_options(config, run, (only, without), rule), profile=federation)
        if fixes is not None:
            said, last = _apply(data, options, fixes)
        else:
            said, last = _find(data, options, out, silent=quiet or as_json)
    if as_json:
        print(json.dumps(said))
    elif not quiet and last:
        output().print(last, soft_wrap=True)


def _options(config: Path | None, run: Path | None, names: tuple[str | None, str | None], rule: str) -> "Options":
    """Return how the data is audited.

    Raises:
        UserError: a name is none of a finder or of a rule, or the configuration can't be read.
    """
    from fedcollm.config.loading import load_config
    from fedcollm.data.audit.finders import FINDERS
    from fedcollm.data.audit.labels import RULES
    from fedcollm.runs.audit import Options

    if rule not in RULES:
        raise UserError(f"--rule {rule!r} is unknown. Choose one of {', '.join(RULES)}.")
    only, without = _names("--only", names[0]), _names("--without", names[1])
    finders = tuple(name for name in only or FINDERS if name not in without)
    if not finders:
        raise UserError("--only and --without leave nothing to look for. Leave one of them out.")
    return Options(None if config is None else load_config(config), run, finders, rule)


def _names(key: str, given: str | None) -> list[str]:
    """Return the names of finders in an option.

    Raises:
        UserError: a name is none of a finder.
    """
    from fedcollm.data.audit.finders import FINDERS

    names = [name.strip() for name in given.split(",")] if given else []
    for name in names:
        if name not in FINDERS:
            raise UserError(f"{key} {name!r} is nothing that an audit looks for. Choose among {', '.join(FINDERS)}.")
    return names


def _find(data: Path, options: "Options", out: Path | None, silent: bool) -> tuple[dict[str, object], str]:
    """Audit the data, write and show what is found, and return it with the last line to print."""
    from fedcollm.runs.audit import audit as find

    found = find(data, options)
    said, last = _as_json(found), ""
    if out is not None:
        from fedcollm.report.audit import write_audit

        report = str(write_audit(found, out))
        said, last = said | {"report": report}, f"report: {report}"
    if not silent:
        _show(found)
    return said, last


def _as_json(found: "Audit") -> dict[str, object]:
    said: dict[str, object] = {
        "records": len(found.subject.records),
        "flagged": found.flagged,
        "findings": found.counts,
        "labels": found.labels,
        "lengths": found.lengths,
        "notes": list(found.notes),
    }
    return said if found.comparison is None else said | {"federation": _compared(found.comparison)}


def _compared(found: "Comparison") -> dict[str, object]:
    from fedcollm.runs.audit_federation import sentences

    copies = found.copies
    known = None if copies.crowded else {"records": copies.records, "standard_error": copies.error}
    return {
        "summary": sentences(found),
        "labels": [asdict(row) for row in found.labels],
        "lengths": [asdict(row) for row in found.lengths],
        "unit": found.unit,
        "copies": known,
    }


def _show(found: "Audit") -> None:
    """Print the number of findings of each kind, and some of each."""
    from fedcollm.cli.terminal import new_table, output
    from fedcollm.data.audit.findings import KINDS
    from fedcollm.report.audit import headline, in_words

    console = output()
    for note in found.notes:
        console.print(f"{note}", soft_wrap=True)
    console.print(f"{found.path}: {headline(found)}", soft_wrap=True)
    if found.comparison is not None:
        _show_comparison(found.comparison)
    if not found.findings:
        return
    table = new_table("", "", "findings", "with a fix")
    for kind, count in found.counts.items():
        fixes = sum(one.kind == kind and one.fix is not None for one in found.findings)
        table.add_row(KINDS[kind].title, str(count), str(fixes))
    console.print(table)
    for kind in found.counts:
        console.print(f"{KINDS[kind].title}. {KINDS[kind].advice}", soft_wrap=True)
        some = [one for one in found.findings if one.kind == kind]
        for one in some[:_EXAMPLES]:
            place = found.subject.records[one.record].place
            line = " ".join(f"{place}: {one.detail} → {in_words(one)}".split())
            console.print(f"  {line if len(line) <= 2 * _SIGNS else line[: 2 * _SIGNS] + ' …'}", soft_wrap=True)
        if len(some) > _EXAMPLES:
            console.print(f"  and {len(some) - _EXAMPLES} more")


def _show_comparison(found: "Comparison") -> None:
    """Print the data beside the federation's: the labels and lengths that differ, and what else is remarkable."""
    from fedcollm.cli.terminal import output
    from fedcollm.runs.audit_federation import sentences

    console = output()
    console.print("beside the federation:")
    for sentence in sentences(found):
        console.print(f"  {sentence}", soft_wrap=True)


def _apply(data: Path, options: "Options", fixes: Path) -> tuple[dict[str, object], str]:
    """Write a copy of the data with the fixes of a table, and the list of its changes beside it; say where."""
    from fedcollm.data.audit.fixes import apply, changes_csv, read_fixes
    from fedcollm.runs.audit import form_of
    from fedcollm.storage import write_atomically, writing

    wanted = read_fixes(fixes)
    if not wanted:
        raise UserError(f"--apply {fixes}: no line has a fix. Give the findings.csv that `audit --out` wrote.")
    with writing(data.parent, "the copy beside {directory} can't be written: {error}. Free some space there."):
        copy, changes = apply(data, form_of(data, options)[0], wanted)
        write_atomically(listed := _changes(copy), changes_csv(changes))
    said: dict[str, object] = {"copy": str(copy), "changes": len(changes), "list": str(listed)}
    return said, f"{copy}: {len(changes)} changes, which are listed in {listed}"


def _changes(copy: Path) -> Path:
    """Return the list of the changes of a cleaned copy, beside it."""
    return copy.with_name(f"{copy.name.partition('.')[0]}-changes.csv")
