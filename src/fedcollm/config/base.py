"""What every section of the configuration has in common."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fedcollm.config.choices import Choice

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def one_of(table: Mapping[str, Choice]) -> Any:
    """Return a validator that accepts the names of a table of choices, for use in `Annotated`."""

    def check(name: str) -> str:
        if name not in table:
            raise ValueError(f"choose one of {', '.join(table)}")
        return name

    return AfterValidator(check)
