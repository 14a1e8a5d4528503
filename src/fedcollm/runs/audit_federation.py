"""Count what a client's own data is like, as its federation counted, and put the two side by side, also in words."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedcollm.config import FormatConfig
from fedcollm.data.answers import Asked, answer_indices
from fedcollm.data.audit.comparison import Comparison, Row, compare
from fedcollm.data.audit.findings import Record, Subject
from fedcollm.data.audit.profiles import (
    LENGTHS,
    Item,
    Profile,
    check_library,
    item_of_example,
    item_of_record,
    own_counts,
)
from fedcollm.data.audit.reading import asked_of
from fedcollm.data.audit.texts import folded
from fedcollm.data.choices import listed
from fedcollm.data.client_files import written_texts
from fedcollm.data.templates import Template
from fedcollm.errors import UserError
from fedcollm.messages import readable

#: What helps if the records are part of the federation, and were not read as they were then.
_CONFIG = "if they are, give the configuration of the run with --config"


def compared_with(profile: Profile, path: Path, form: FormatConfig, subject: Subject) -> Comparison:
    """Return a client's own data beside the federation's.

    Args:
        profile: the profile of the federation.
        path: the data.
        form: which columns are what.
        subject: its records.

    Raises:
        UserError: the two are of different kinds, no record can be read, or a library is missing.
    """
    own, theirs = LENGTHS.get(subject.kind), LENGTHS.get(profile.kind)
    if own is None or own != theirs:
        raise UserError(
            f"--federation: the profile is of data of the kind {profile.kind}, and {path} is of the kind "
            f"{subject.kind}. Give the profile of the run that this data is for."
        )
    check_library(subject.kind)
    items, labels = _own(path, form, subject, list(profile.labels))
    if not items:
        raise UserError(f"--federation: no record of {path} can be read. Restore the files, or leave out --federation.")
    return compare(own_counts(items, labels, profile), profile, own.unit)


def _own(
    path: Path, form: FormatConfig, subject: Subject, names: Sequence[str]
) -> tuple[list[Item], Mapping[str, int]]:
    """Return what is counted of the records, and the number of records with each label."""
    literals = () if form.prompt is None else Template(form.prompt).literals
    examples = written_texts(path) if subject.kind == "text" else None
    if examples is not None:
        found = Counter(str(example.label) for example in examples if example.label is not None)
        return [item_of_example(example, literals) for example in examples], found
    prompts = [replace(record, text=asked_of(record, form)) for record in subject.records]
    items = [item_of_record(record, subject.kind, literals) for record in prompts]
    return [item for item in items if item is not None], _labels(subject.records, form, names)


def _labels(records: Sequence[Record], form: FormatConfig, names: Sequence[str]) -> Mapping[str, int]:
    """Return the number of records with each label of the federation, and under their own names those with others."""
    given = [(record, record.label) for record in records if record.label is not None]
    if isinstance(form.choices, list):
        choices = listed(form.choices, "task.format.choices")
        asked = [Asked(one.place, one.raw.get(str(form.answer), label), label, choices, True) for one, label in given]
        try:
            indices, _ = answer_indices(asked, form.answer_is, str(form.answer))
            return Counter(choices.texts[index] for index in indices)
        except UserError:  # a finder reports labels that are none of the choices
            pass
    spellings = {folded(name): name for name in names}
    return Counter(spellings.get(folded(label), label) for _, label in given)


def sentences(found: Comparison) -> list[str]:
    """Return what is remarkable about one's own data beside the federation's, in sentences."""
    examples, clients = found.federation
    said = [
        f"{found.examples:,} records beside {examples:,} examples of {clients:,} clients"
        + ("" if found.member else f", which your records don't seem to be part of ({_CONFIG})")
    ]
    if found.member and found.missing:
        said.append(
            f"at least {found.missing:,} of your records are not in the profile: they were held out, cleaned, or "
            "changed since"
        )
    if found.unknown:
        said.append(f"{found.unknown:,} of your records have a label that the federation does not have")
    said += [f"{_shares(row)} are {readable(row.name)!r}{_beside(row)}" for row in found.labels if row.differs]
    said += [f"{_shares(row)} have {row.name} {found.unit}{_beside(row)}" for row in found.lengths if row.differs]
    for what, rows in (("label", found.labels), ("length", found.lengths)):
        if rows and not any(row.differs for row in rows):
            said.append(f"no {what} is more or less frequent than chance explains")
    return [*said, *_copies(found)]


def _shares(row: Row) -> str:
    return f"{100 * row.own_share:.0f} % of your records"


def _beside(row: Row) -> str:
    return f", {100 * row.federation_share:.0f} % of the federation's: more than chance explains"


def _copies(found: Comparison) -> Iterator[str]:
    """Yield how many own records another client has too."""
    copies, others = found.copies, "another client" if found.member else "a client"
    if copies.crowded:
        yield (
            f"how many of your records {others} has too can't be told: the examples fill nearly all buckets. In "
            "another run, set task.private_size to about the number of examples of a client"
        )
        return
    beside = f"{copies.hit:,} share a bucket with others, and {100 * copies.chance:.0f} % would by chance"
    if copies.found:
        yield (
            f"about {copies.records:.0f} of your records (± {copies.error:.0f}) are held by {others} too, or nearly "
            f"the same: {beside}"
        )
    else:
        yield f"no sign that {others} has copies of your records: {beside} (± {copies.error:.0f} records)"
