"""What an audit looks at and what it finds: records, findings and fixes, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedcollm.modalities.audio.recordings import Recording
from fedcollm.modalities.vision.images import decode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Record:
    """One row of a table, or one file of a folder.

    Attributes:
        file: the table, or the file itself.
        row: its number in the table, from 1; 0 if there is no table.
        place: both in words, for readers.
        text: what a model reads; empty if the record is an image or a recording.
        label: class or answer; None if it has none.
        cells: the columns whose text is private data that a finder may have to search: those of the input and, if it
            is free text, that of the answer.
        source: image or recording: its file, or its content; None for text.
        raw: the row as the table has it, column to value; nothing if there is no table.
        fault: why it can't be read at all; empty if it can.
    """

    file: Path
    row: int
    place: str
    text: str = ""
    label: str | None = None
    cells: Mapping[str, str] = field(default_factory=dict[str, str])
    source: Path | bytes | None = field(default=None, repr=False)
    raw: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    fault: str = ""

    def image(self) -> "Image.Image":
        """Return the image in RGB.

        Raises:
            UserError: it can't be read.
        """
        return decode(b"" if self.source is None else self.source, self.place).image

    def sound(self) -> "tuple[NDArray[np.float32], int]":
        """Return the samples of the recording, averaged over its channels, [T], and their rate in Hz.

        Raises:
            UserError: it can't be read.
        """
        recording = Recording(b"" if self.source is None else self.source, self.place)
        return recording.mono(), recording.facts.rate


@dataclass(frozen=True)
class Fix:
    """A change that mends a record.

    Attributes:
        action: `drop` removes the row or leaves the file out; `set` writes a value into a column.
        column: the column, for `set`; empty for the folder that a file is in.
        value: the new value, for `set`.
    """

    action: Literal["drop", "set"]
    column: str = ""
    value: str = ""


@dataclass(frozen=True)
class Finding:
    """Something about a record that may be wrong.

    Attributes:
        kind: a key of `KINDS`.
        record: position of the record in the audited records, from 0.
        detail: what was found, in a few words.
        score: how sure the finder is, from 0 to 1.
        fix: what would mend it; None if only a person can tell.
        other: position of the record that it is like, if it is a duplicate.
    """

    kind: str
    record: int
    detail: str
    score: float = 1.0
    fix: Fix | None = None
    other: int | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        title: its name for readers.
        advice: what to do about it, as a sentence.
    """

    title: str
    advice: str


#: Every kind of finding, in the order of a report.
KINDS: Mapping[str, Kind] = {
    "unreadable": Kind("Unreadable", "Restore the file from its source, or drop it: a run would refuse it."),
    "empty": Kind("Empty", "Fill it in, or drop the row."),
    "unlabelled": Kind("Without a label", "Fill in the label, or drop the row."),
    "spelling": Kind("Label in another spelling", "Spell a class in one way: a run would take them for two."),
    "label": Kind("Label probably wrong", "Look at it: the model that says so may be wrong itself."),
    "conflict": Kind("Duplicate with another label", "At least one of the two labels is wrong: look at both."),
    "duplicate": Kind("Exact duplicate", "Drop it: a record that stands there twice counts twice."),
    "near_duplicate": Kind("Near duplicate", "Drop it if it says nothing new."),
    "garbled": Kind("Garbled", "Read the file in its right encoding, or repair the text."),
    "long": Kind("Too long", "Its end is cut off in training: shorten it, or put what matters first."),
    "language": Kind("In another language", "Translate it, or drop it if the models don't speak it."),
    "personal": Kind("Personal data", "Mask it unless the task needs it: a model can learn it by heart."),
    "size": Kind("Odd size", "See whether it shows the same thing as the others."),
    "dark": Kind("Dark", "Take it again, or drop it if nothing is to be seen."),
    "bright": Kind("Bright", "Take it again, or drop it if nothing is to be seen."),
    "blurry": Kind("Blurry", "Take it again, or drop it if nothing is to be seen."),
    "plain": Kind("Without information", "Drop it if there is nothing in it."),
    "silent": Kind("Silent", "Record it again, or drop it."),
    "clipped": Kind("Clipped", "Record it at a lower level: its peaks are cut off."),
    "short": Kind("Too short", "See whether its end is missing."),
}


@dataclass(frozen=True)
class Subject:
    """The data of an audit, and what its finders need to know of it.

    Attributes:
        kind: kind of data, as `FormatConfig.kind`.
        records: the records.
        answer: column of the labels; empty for class folders.
        free: whether labels are free texts instead of classes.
        longest: largest number of characters or, with `count_tokens`, of tokens that a model reads; None if unknown.
        count_tokens: returns the number of tokens of a text; None to count characters.
        probabilities: [N, C] how likely each class is for each record, by a model that is not the labels' own;
            None to train one on the data.
        classes: the C classes of `probabilities`.
        rule: how labels are judged, a key of `labels.RULES`.
    """

    kind: str
    records: Sequence[Record]
    answer: str = ""
    free: bool = False
    longest: int | None = None
    count_tokens: Any = None
    probabilities: "NDArray[np.float64] | None" = None
    classes: Sequence[str] = ()
    rule: str = "noise_model"
