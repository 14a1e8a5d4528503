"""Arguments and options that several commands share."""

from typing import Annotated, Any, cast

import typer

#: The functions of typer that describe an argument and an option, without their types, which typer leaves incomplete.
argument: Any = cast(Any, typer).Argument
option: Any = cast(Any, typer).Option

Source = Annotated[str, argument(metavar="CONFIG|PRESET", help="a YAML file, or a name from `fedcollm presets`")]
Settings = Annotated[list[str] | None, option("--set", metavar="a.b=c", help="override one key; can be repeated")]
Quiet = Annotated[bool, option("--quiet", help="print nothing but errors")]
Json = Annotated[bool, option("--json", help="print only the result, as one line of JSON")]
MemoryLimit = Annotated[
    str | None,
    option(
        "--memory-limit",
        metavar="SIZE",
        help="compute batches in parts, and layers twice if needed, so that the process takes no more than this: 700MB",
    ),
]
AcceptChangedData = Annotated[
    bool, option("--accept-changed-data", help="go on although data or base models are not those of the run")
]
