"""Read the files of a run directory with test examples and the models' answers; no models are needed for it."""

from pathlib import Path

from fedcollm.modalities.exhibits import Exhibit, from_json
from fedcollm.runs import directory as directories


def read_exhibits(directory: Path, name: str = directories.EXHIBITS) -> list[Exhibit]:
    """Return the exhibits in a file of a run directory, `EXHIBITS` or `EXHIBITS_START`; no exhibits without the file.

    Raises:
        UserError: the file holds something else.
    """
    try:
        return from_json(directories.read_json(directory, name) or [])
    except ValueError as error:
        raise directories.damaged(directory / name, error) from error
