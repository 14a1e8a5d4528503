"""Arguments and options that several commands have."""

from typing import Annotated

import typer

Source = Annotated[str, typer.Argument(metavar="CONFIG|PRESET", help="a YAML file, or a name from `fedcollm presets`")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="override one key; may be repeated")]
Quiet = Annotated[bool, typer.Option("--quiet", help="print nothing but errors")]
Json = Annotated[
    bool, typer.Option("--json", help="print the result as one JSON line, and nothing else on standard output")
]
