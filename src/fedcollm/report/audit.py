"""Write what an audit found: a self-contained HTML file and a table, which stay on the machine that has the data."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedcollm.data.audit.comparison import Comparison, Row
from fedcollm.data.audit.findings import KINDS, Finding, Record
from fedcollm.data.audit.fixes import findings_csv
from fedcollm.messages import readable
from fedcollm.report.formats import amount, count, share
from fedcollm.runs.audit import Audit
from fedcollm.runs.audit_federation import sentences
from fedcollm.storage import make_directory, write_atomically, writing

#: The files that an audit writes.
REPORT, FINDINGS = "audit.html", "findings.csv"

#: Largest number of findings of a kind and of labels that the page shows, and of signs of a text.
_ROWS, _LABELS, _SIGNS = 200, 60, 300


def write_audit(found: Audit, out: Path) -> Path:
    """Write the report and the table of findings, and return the path of the report.

    Args:
        found: the audit.
        out: a directory, which is made if it is missing.

    Raises:
        UserError: it can't be written.
    """
    root = found.path if found.path.is_dir() else found.path.parent
    with writing(out):
        make_directory(out)
        write_atomically(out / FINDINGS, findings_csv(root, found.subject, found.findings))
        write_atomically(out / REPORT, render(found))
    return out / REPORT


def render(found: Audit) -> str:
    """Return the page. Everything in it is escaped, because the data is text and never markup."""
    environment = Environment(loader=PackageLoader("fedcollm.report", ""), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("audit.html").render(
        name=readable(found.path.name),
        path=readable(str(found.path)),
        headline=headline(found),
        tiles=_tiles(found),
        notes=list(map(readable, found.notes)),
        kinds=[_kind(found, kind, number) for kind, number in found.counts.items()],
        labels=_labels(found),
        lengths={name: count(value) for name, value in found.lengths.items()},
        federation=None if found.comparison is None else _federation(found.comparison),
    )


def _federation(found: Comparison) -> dict[str, Any]:
    """Return the data beside the federation's: sentences, and a table each of labels and lengths."""
    tables = [("Label", found.labels), (f"Length in {found.unit}", found.lengths)]
    return {
        "sentences": list(map(readable, sentences(found))),
        "tables": [(title, [_beside(row) for row in rows]) for title, rows in tables if rows],
    }


def _beside(row: Row) -> tuple[str, str, str, str]:
    differs = "more than chance explains" if row.differs else "–"
    return readable(row.name), share(row.own_share), share(row.federation_share), differs


def headline(found: Audit) -> str:
    """Return what an audit found, in one sentence."""
    records = amount(len(found.subject.records), "record")
    if not found.findings:
        return f"{records}: nothing was found"
    return f"{records}: {count(found.flagged)} should be looked at"


def _tiles(found: Audit) -> list[tuple[str, str, str]]:
    records = len(found.subject.records)
    fixes = sum(one.fix is not None for one in found.findings)
    return [
        ("Records", count(records), f"{amount(len(found.labels), 'class').replace('classs', 'classes')}"),
        ("To be looked at", count(found.flagged), share(found.flagged / records)),
        ("Findings", count(len(found.findings)), f"of {amount(len(found.counts), 'kind')}"),
        ("With a fix", count(fixes), "applied only with --apply"),
    ]


def _kind(found: Audit, kind: str, number: int) -> dict[str, Any]:
    some = [one for one in found.findings if one.kind == kind][:_ROWS]
    rows = [_row(found.subject.records[one.record], one) for one in some]
    return {
        "name": kind,
        "title": KINDS[kind].title,
        "advice": KINDS[kind].advice,
        "count": count(number),
        "rows": rows,
        "left_out": number > len(rows),
    }


def _row(record: Record, finding: Finding) -> dict[str, str]:
    texts = {
        "place": Path(record.place).name if record.row else record.place,
        "text": "\n".join(part for part in (record.text, record.label) if part),
        "detail": finding.detail,
        "fix": in_words(finding),
    }
    short = {name: readable(text if len(text) <= _SIGNS else f"{text[:_SIGNS]} …") for name, text in texts.items()}
    return short | {"score": f"{finding.score:.2f}"}


def in_words(finding: Finding) -> str:
    """Return what a fix would do; a dash if there is none.

    >>> from fedcollm.data.audit.findings import Fix
    >>> in_words(Finding("label", 0, "", fix=Fix("set", "kind", "bird"))), in_words(Finding("blurry", 0, ""))
    ('kind: bird', '–')
    """
    if finding.fix is None:
        return "–"
    if finding.fix.action == "drop":
        return "drop it"
    return f"{finding.fix.column or 'folder'}: {finding.fix.value}"


def _labels(found: Audit) -> list[tuple[str, str, str]]:
    labels = found.labels
    total, shown = sum(labels.values()), list(labels.items())[:_LABELS]
    rest = total - sum(number for _, number in shown)
    lines = [(readable(name), count(number), share(number / total)) for name, number in shown]
    return lines + ([(f"{len(labels) - len(shown)} more", count(rest), share(rest / total))] if rest else [])
