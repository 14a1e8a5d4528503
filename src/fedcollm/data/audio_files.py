"""Read the user's own recordings: a table with a column of audio files, and one of their classes or transcripts.

Every recording is decoded once here, so that a broken one is named before anything is trained, and duplicates are
found. No path leaves the folder of the data, also not by a symbolic link.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedcollm.config import FormatConfig
from fedcollm.data.media_files import Column, Found, found_in_parts, listed_classes, with_classes
from fedcollm.data.partition import check_classes
from fedcollm.data.pool import Pool
from fedcollm.data.rows import check_ids, label_notes
from fedcollm.errors import UserError
from fedcollm.modalities.audio.classification import AudioExample
from fedcollm.modalities.audio.recordings import Recording
from fedcollm.modalities.audio.transcripts import SpeechExample, transcript
from fedcollm.progress import track


def find_sounds(path: Path, format: FormatConfig) -> tuple[str, ...]:
    """Return the classes of a user's recordings: those that are listed, or else all of the training data, sorted.

    Where there is no training data, as on the server of a deployment, they are those of the public data.

    Args:
        path: as in `load_sounds`.
        format: which columns are the recording and its class.

    Raises:
        UserError: the training data can't be read, or has fewer than two classes.
    """
    return listed_classes(path, format, "recordings")


def load_sounds(path: Path, format: FormatConfig, classes: Sequence[str], several_classes: bool = True) -> Pool:
    """Return the examples of a user's own recordings with classes.

    Args:
        path: a table with a row per recording, or a directory of such tables, as `find_parts` describes it.
        format: which columns are the recording, its class and its group.
        classes: names of the classes.
        several_classes: whether to refuse training data with a single class. The data of one client may have one.

    Raises:
        UserError: a file, a recording, a class or the format is invalid.
    """

    def example(found: Found) -> AudioExample:
        return AudioExample(found.id, recording_in(found, format), found.label, found.group, tuple(classes))

    found, notes = _found(path, format, "answer")
    found, told = with_classes(found, format, classes)
    pool = _pool(found, [*notes, *told, *label_notes(classes)], example)
    if several_classes and "train" in found:
        check_classes(pool.train, str(path))
    return pool


def load_speech(path: Path, format: FormatConfig) -> Pool:
    """Return the examples of a user's own recordings of speech with transcripts.

    Args:
        path: as in `load_sounds`.
        format: which columns are the recording, its transcript and its group.

    Raises:
        UserError: a file or a recording is invalid, or a transcript has no word.
    """

    def example(found: Found) -> SpeechExample:
        made = SpeechExample(found.id, recording_in(found, format), found.label, found.group)
        if found.label is not None:
            _naming(found, lambda: transcript(made))
        return made

    return _pool(*_found(path, format, "transcript"), example)


def _found(path: Path, format: FormatConfig, label: str) -> tuple[dict[str, list[Found]], list[str]]:
    """Return what the rows of each part name, and notes.

    Args:
        path: as in `load_sounds`.
        format: which columns are what.
        label: the key of `format` that names the column of labels.
    """
    return found_in_parts(path, Column("task.format.audio", str(format.audio), "recording"), format, label)


def _pool(found: Mapping[str, Sequence[Found]], notes: list[str], example: Callable[[Found], Any]) -> Pool:
    """Return all parts of the data; `example` makes an example of a row, and reads it."""
    parts = {part: _examples(part, rows, example) for part, rows in found.items()}
    return Pool(**{"train": []} | parts, notes=notes)


def _examples(part: str, rows: Sequence[Found], example: Callable[[Found], Any]) -> list[Any]:
    made = [example(row) for row in track(rows, f"reading recordings of {part}", total=len(rows))]
    check_ids(made, [row.place for row in rows])
    return made


def recording_in(found: Found, format: FormatConfig) -> Recording:
    """Return the recording of a row, after decoding it once."""
    recording = Recording(found.source, f"recording {found.id}" if isinstance(found.source, bytes) else "")
    _naming(found, lambda: recording.mono(format.longest_seconds))
    return recording


def _naming(found: Found, check: Callable[[], object]) -> None:
    """Do a check, and name the place of the row if it fails."""
    try:
        check()
    except UserError as error:
        raise UserError(f"{found.place}: {error}") from None
