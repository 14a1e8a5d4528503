"""What the JSON files of a run directory must hold, so that a damaged one is named when it is read."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Shape(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow", strict=True)


class Environment(_Shape):
    """What is read of `environment.json`; all else in it is only shown."""

    parameters: dict[str, dict[str, Count]] = {}
    dtype: dict[str, str] = {}
    healed: dict[str, str] | None = None
    changes: dict[str, dict[str, Any]] = {}


class Data(_Shape):
    """The content of `data.json`."""

    clients: dict[str, dict[str, Count]]
    public: dict[str, Count]
    unlabelled: Count
    test: Count
    duplicates_removed: Count = 0
    notes: list[str] = []


class Started(_Shape):
    """The content of `started.json`."""

    rounds: Count


class Personal(_Shape):
    """The content of `personal.json`."""

    round: Count
    scores: dict[str, float]


_ANY: TypeAdapter[Any] = TypeAdapter(Any)

_SHAPES: Mapping[str, TypeAdapter[Any]] = {
    "environment.json": TypeAdapter(Environment),
    "data.json": TypeAdapter(Data),
    "started.json": TypeAdapter(Started),
    "personal.json": TypeAdapter(Personal),
    "confusion.json": TypeAdapter(dict[str, list[tuple[str, str, Count]]]),
    "confusion_start.json": TypeAdapter(dict[str, list[tuple[str, str, Count]]]),
    "outcomes.json": TypeAdapter(dict[str, dict[str, float]]),
    "exhibits.json": TypeAdapter(list[Any]),
    "exhibits_start.json": TypeAdapter(list[Any]),
}


def check_shape(name: str, text: str) -> None:
    """Check that the text of a file is JSON, is not nested too deeply (200 levels), and has the shape of this file.

    Args:
        name: name of the file in a run directory.
        text: its content.

    Raises:
        ValueError: it is not. The error is pydantic's `ValidationError`.
    """
    _SHAPES.get(name, _ANY).validate_json(text, strict=True)
