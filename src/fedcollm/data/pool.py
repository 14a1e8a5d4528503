"""The examples of a data source, and the disjoint parts into which a run splits them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Pool:
    """The examples of a data source, before they are split.

    Attributes:
        train: examples for the private parts, and for the public set unless `public` is given. There are none where
            the clients have their own data elsewhere.
        test: examples for scoring, or None to take them from `train`.
        public: examples for the public set D_a, or None to take them from `train`.
        unlabelled: examples for the unlabelled part of D_a, or None to take it from `public`, without its labels.
        notes: sentences about how the files were read that a reader of the results should know.
    """

    train: Sequence[Any]
    test: Sequence[Any] | None = None
    public: Sequence[Any] | None = None
    unlabelled: Sequence[Any] | None = None
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Split:
    """The disjoint parts of the data.

    Attributes:
        public: D_a, first the labelled and then the unlabelled examples.
        private: client id to D_k.
        test: examples for scoring.
        duplicates_removed: number of examples that were dropped because another one has the same content.
        notes: sentences about the split that a reader of the results should know.
    """

    public: list[Any]
    private: dict[str, list[Any]]
    test: list[Any]
    duplicates_removed: int = 0
    notes: list[str] = field(default_factory=list[str])
