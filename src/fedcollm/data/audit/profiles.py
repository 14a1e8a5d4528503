"""The profile of a federation's data: how many examples have each label and length, and a sketch of what they hold.

A client counts its own examples, the federation adds the counts up (`federation/profile.py`), and what comes out is
written to `profile.json`, with which a client's audit compares its own data.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator

from fedcollm.config.control import FEWEST_BUCKETS, MOST_BUCKETS
from fedcollm.data.audit.extra import audit_library
from fedcollm.data.audit.findings import Record
from fedcollm.data.audit.fingerprints import SCHEME, bucket, image_name, normal, sound_name, text_name
from fedcollm.errors import UserError
from fedcollm.messages import MOST_EXAMPLES
from fedcollm.modalities.audio.recordings import Recording
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.vision.images import decode

#: Number of bins of lengths: each is twice as long as the one before.
BINS = 12

_MOST_LABELS, _LONGEST_LABEL, _MOST_CLIENTS = 10_000, 1_000, 2**16
_LARGEST_BYTES = 2**23


class Lengths(NamedTuple):
    """What the length of an example of some kind is.

    Attributes:
        unit: the unit, in words.
        first: the first bin ends at two to this power.
    """

    unit: str
    first: int


_PIXELS, _SECONDS = Lengths("pixels of the longer side", 4), Lengths("seconds", -2)

#: Kind of data to its lengths; other kinds have none.
LENGTHS: Mapping[str, Lengths] = {
    "text": Lengths("characters", 4),
    "image_files": _PIXELS,
    "object_files": _PIXELS,
    "audio_files": _SECONDS,
    "speech_files": _SECONDS,
}

#: Kind of data to the library of the extra `audit` that its sketch needs; other kinds need none.
_LIBRARIES: Mapping[str, str] = {"text": "datasketch", "image_files": "imagehash", "object_files": "imagehash"}


class Item(NamedTuple):
    """What a profile counts of an example.

    Attributes:
        name: the name that its copies have too; see `fingerprints`.
        length: how long it is, in the unit of its kind; None if it has no length.
    """

    name: bytes
    length: float | None


def kind_of(example: Any) -> str:
    """Return the kind of an example, as `FormatConfig.kind` calls it; `other` for examples without text and file."""
    if isinstance(example, TextExample):
        return "text"
    if hasattr(example, "recording"):
        return "audio_files"
    return "image_files" if hasattr(example, "source") else "other"


def check_library(kind: str) -> None:
    """Check that what the sketch of a kind of data needs is installed.

    Raises:
        UserError: it is not.
    """
    if kind in _LIBRARIES:
        audit_library(_LIBRARIES[kind])


def item_of_example(example: Any, literals: Sequence[str] = ()) -> Item:
    """Return what a profile counts of a training example.

    Args:
        example: the example, of any modality.
        literals: what a template has put into every text.

    Raises:
        UserError: it can't be read, or a library is missing.
    """
    kind = kind_of(example)
    if kind == "text":
        return _of_text(example.prompt or example.text, literals)
    if kind == "other":
        return Item(str(example.content).encode("utf-8", "replace"), None)
    source = example.recording.source if kind == "audio_files" else example.source
    return _of_file(kind, source, str(example.id))


def item_of_record(record: Record, kind: str, literals: Sequence[str] = ()) -> Item | None:
    """Return what a profile counts of an audited record; None if the record can't be read.

    Args:
        record: the record. Its text has no choices of its own, which an example's prompt does not have either.
        kind: the kind of data.
        literals: what a template has put into every text.

    Raises:
        UserError: a library is missing.
    """
    if kind == "text":
        return _of_text(record.text, literals) if record.text.strip() else None
    check_library(kind)
    try:
        return None if record.fault else _of_file(kind, record.source or b"", record.place)
    except UserError:
        return None


def _of_text(text: str, literals: Sequence[str]) -> Item:
    return Item(text_name(text, literals), len(normal(text, literals)))


def _of_file(kind: str, source: Path | bytes, place: str) -> Item:
    if LENGTHS[kind] == _SECONDS:
        recording = Recording(source, place)
        return Item(sound_name(recording.mono()), recording.facts.seconds)
    image = decode(source, place).image
    return Item(image_name(image), max(image.size))


def length_counts(items: Iterable[Item], kind: str) -> NDArray[np.int64]:
    """Return how many items are in each bin of lengths, [BINS]; the first and the last one have no other bound."""
    lengths = [item.length for item in items if item.length is not None]
    edges = [2.0 ** (LENGTHS[kind].first + i) for i in range(BINS - 1)]
    return np.bincount(np.searchsorted(edges, lengths, side="right"), minlength=BINS)


def sketch_counts(items: Iterable[Item], buckets: int) -> NDArray[np.int64]:
    """Return how many items are in each bucket, [buckets]."""
    return np.bincount([bucket(item.name, buckets) for item in items], minlength=buckets)


def bin_names(kind: str) -> list[str]:
    """Return the bins of lengths in words.

    >>> bin_names("text")[:2], bin_names("audio_files")[-1]
    (['under 16', '16 to under 32'], '256 or more')
    """
    edges = [2.0 ** (LENGTHS[kind].first + i) for i in range(BINS - 1)]
    inner = [f"{low:g} to under {2 * low:g}" for low in edges[:-1]]
    return [f"under {edges[0]:g}", *inner, f"{edges[-1]:.0f} or more"]


Count = Annotated[int, Field(ge=0, le=MOST_EXAMPLES * _MOST_CLIENTS)]
Label = Annotated[str, Field(min_length=1, max_length=_LONGEST_LABEL)]


class Profile(BaseModel, frozen=True, extra="forbid", strict=True):
    """What a federation's examples are like, as sums over its clients.

    Attributes:
        scheme: version of what names and buckets depend on.
        kind: kind of data: a key of `LENGTHS`, or `other`.
        clients: number of clients that were counted.
        examples: number of their examples.
        labels: label of the task to its number of examples; empty if the examples don't share labels.
        lengths: [BINS] number of examples in each bin; empty if the examples have no length.
        sketch: [buckets] number of examples in each bucket.
    """

    scheme: str
    kind: str
    clients: Annotated[int, Field(ge=1, le=_MOST_CLIENTS)]
    examples: Annotated[int, Field(ge=1, le=MOST_EXAMPLES * _MOST_CLIENTS)]
    labels: Annotated[dict[Label, Count], Field(max_length=_MOST_LABELS)]
    lengths: list[Count]
    sketch: Annotated[list[Count], Field(min_length=FEWEST_BUCKETS, max_length=MOST_BUCKETS)]

    @model_validator(mode="after")
    def _possible(self) -> "Profile":
        if self.scheme != SCHEME:
            raise ValueError(f"it has the scheme {self.scheme[:40]!r}, and this version of fedcollm has {SCHEME!r}")
        if self.kind not in (*LENGTHS, "other"):
            raise ValueError(f"the kind {self.kind[:40]!r} is none of {', '.join((*LENGTHS, 'other'))}")
        if len(self.lengths) != (BINS if self.kind in LENGTHS else 0):
            raise ValueError(f"lengths has {len(self.lengths)} bins, and data of kind {self.kind} has another number")
        if len(self.sketch) & (len(self.sketch) - 1):
            raise ValueError(f"sketch has {len(self.sketch)} buckets, which is no power of two")
        for name, counts in (("labels", self.labels.values()), ("lengths", self.lengths), ("sketch", self.sketch)):
            if sum(counts) > self.examples:
                raise ValueError(f"{name} counts {sum(counts)} examples of {self.examples}")
        return self

    def text(self) -> str:
        """Return the content of a `profile.json`."""
        return json.dumps(self.model_dump(), ensure_ascii=False) + "\n"


def read_profile(path: Path) -> Profile:
    """Return the profile in a file, which another party wrote.

    Raises:
        UserError: it can't be read, or is no profile.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_BYTES + 1)
        if len(content) > _LARGEST_BYTES:
            raise ValueError(f"it is longer than {_LARGEST_BYTES} bytes")
        return Profile.model_validate(json.loads(content.decode("utf-8")))
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        where = ".".join(str(part)[:40] for part in problem["loc"][:2])
        reason = f"{where}: {problem['msg']}" if where else problem["msg"].removeprefix("Value error, ")
    except OSError as error:
        reason = str(error.strerror or error)[:200]
    except json.JSONDecodeError as error:
        reason = f"it is no JSON ({error})"
    except (ValueError, RecursionError) as error:
        reason = str(error)[:200]
    raise UserError(
        f"{path} is no profile of a federation: {reason}. Give the profile.json from the run directory of a run with "
        "federation.profile: true, as the server wrote it."
    )


@dataclass(frozen=True)
class Own:
    """What an audit counts of a client's own records.

    Attributes:
        examples: number of records that were counted.
        labels: label to its number of records; empty if they don't share labels.
        lengths: [BINS] number of records in each bin; empty if they have no length.
        sketch: [buckets] number of records in each bucket.
    """

    examples: int
    labels: Mapping[str, int]
    lengths: Sequence[int]
    sketch: NDArray[np.int64]


def own_counts(items: Sequence[Item], labels: Mapping[str, int], profile: Profile) -> Own:
    """Return what a client's own records are like, counted as the profile counts.

    Args:
        items: the records that can be read.
        labels: label to number of records.
        profile: the profile of the federation.
    """
    lengths: list[int] = length_counts(items, profile.kind).tolist() if profile.lengths else []
    return Own(len(items), dict(labels), lengths, sketch_counts(items, len(profile.sketch)))
