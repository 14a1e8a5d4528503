"""Features of records that need no network: the same as those of the control in closed form."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedcollm.data.audit.findings import Record, Subject
from fedcollm.data.audit.sounds import spectrum
from fedcollm.errors import UserError

#: Columns that n-grams are hashed to, and the side of the gray and of the coloured thumbnail.
_COLUMNS, _GRAY, _COLORS = 2048, 16, 4


def features(subject: Subject, which: Sequence[int]) -> NDArray[np.float64]:
    """Return the features of some records: [N, d], each row with a norm of 1 or, if it can't be read, 0.

    Args:
        subject: the data.
        which: positions of the records.
    """
    rows: Any = FEATURES[subject.kind]([subject.records[i] for i in which])
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), dtype=np.float64)


def _texts(records: Sequence[Record]) -> Any:
    """Return hashed character 3- to 5-grams within words."""
    from sklearn.feature_extraction import text  # pyright: ignore[reportMissingTypeStubs]

    hashing: Any = text.HashingVectorizer
    vectorizer = hashing(n_features=_COLUMNS, analyzer="char_wb", ngram_range=(3, 5))
    return vectorizer.transform([f"{record.text} " for record in records]).toarray()


def _images(records: Sequence[Record]) -> Any:
    """Return gray and coloured thumbnails, and how often edges have each of eight directions in each of 16 cells."""
    return np.stack([_image(record) for record in records])


def _image(record: Record) -> Any:
    try:
        image = record.image()
    except UserError:
        image = Image.new("RGB", (_GRAY, _GRAY))
    gray = np.asarray(image.convert("L").resize((2 * _GRAY, 2 * _GRAY), Image.Resampling.BILINEAR), dtype=float) / 255
    colors = np.asarray(image.resize((_COLORS, _COLORS), Image.Resampling.BOX), dtype=float).ravel() / 255
    small = gray.reshape(_GRAY, 2, _GRAY, 2).mean((1, 3)).ravel()
    parts = [small - small.mean(), colors - 0.5, _edges(gray)]
    return np.concatenate([part / (np.linalg.norm(part) + 1e-9) for part in parts])


def _edges(gray: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [128], the strength of edges by cell (4 x 4) and direction (8)."""
    down, right = np.gradient(gray)
    strength, direction = np.hypot(down, right), np.floor((np.arctan2(down, right) / np.pi + 1) * 4) % 8
    side = len(gray) // 4
    cells = [(strength[i : i + side, j : j + side], direction[i : i + side, j : j + side])
             for i in range(0, len(gray), side) for j in range(0, len(gray), side)]  # fmt: skip
    bins: Any = [np.bincount(which.astype(int).ravel(), weights=much.ravel(), minlength=8) for much, which in cells]
    return np.concatenate(bins)


def _sounds(records: Sequence[Record]) -> Any:
    rows: list[Any] = []
    for record in records:
        try:
            rows.append(spectrum(record.sound()[0]))
        except UserError:
            rows.append(spectrum(np.zeros(1, dtype=np.float32)))
    return np.stack(rows)


#: Kind of data to what computes features; other kinds have no classes.
FEATURES: Mapping[str, Callable[[Sequence[Record]], Any]] = {
    "text": _texts,
    "image_files": _images,
    "audio_files": _sounds,
}
