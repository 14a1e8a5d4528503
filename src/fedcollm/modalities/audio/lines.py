"""Examples of audio as lines of a JSON lines file, which contain their recordings, for a deployed client."""

import base64
from collections.abc import Mapping
from typing import Any

from fedcollm.errors import UserError
from fedcollm.modalities.audio.recordings import Recording
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.plain_text import check_text


def recording_row(example: Any) -> dict[str, Any]:
    """Return id, recording (its bytes in base64), label and group of an example, for a line of a JSON lines file."""
    audio = base64.b64encode(example.recording.encoded()).decode("ascii")
    return {"id": example.id, "audio": audio, "label": example.label, "group": example.group}


def recording_of(row: Mapping[str, Any], place: str) -> Recording:
    """Return the recording of a line that `recording_row` wrote, after decoding it once.

    Args:
        row: the line's object, whose label the caller checks.
        place: file and line, for messages.

    Raises:
        UserError: the line is no example, or its recording can't be used.
    """
    texts = all(isinstance(row.get(key), str) for key in ("id", "audio", "label"))
    if not texts or not isinstance(row.get("group"), str | None):
        raise UserError(
            f"{place}: {shorten(dict(row))} is no example. Each line needs id, audio (a file in base64) and label."
        )
    check_text([row["id"], row["label"], row.get("group")], place)
    try:
        content = base64.b64decode(row["audio"], validate=True)
    except ValueError as error:
        raise UserError(f"{place}: audio is not valid base64 ({error}). Write the file's bytes in base64.") from None
    recording = Recording(content, f"{place}: recording {row['id']}")
    recording.mono()
    return recording
