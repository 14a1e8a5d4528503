"""The commands `fedcollm presets` and `fedcollm init`: list the presets, and print a configuration to start from."""

from pathlib import Path
from typing import Annotated

from fedcollm.cli.options import argument, option


def presets() -> None:
    """List the configurations that ship with fedcollm."""
    from fedcollm.config.loading import preset_description, preset_names

    for name in preset_names():
        print(f"{name:16} {preset_description(name)}")


def init(
    source: Annotated[
        str | None, argument(metavar="[CONFIG|PRESET]", help="a YAML file or a preset; default: icd10")
    ] = None,
    data: Annotated[
        Path | None,
        option("--data", help="look at your table (CSV, JSON, Parquet, ...), and write a configuration for it"),
    ] = None,
    answer: Annotated[str | None, option("--answer", help="with --data: the column of the answers")] = None,
    group: Annotated[
        str | None, option("--group", help="with --data: the column that names the client of a row")
    ] = None,
    prompt: Annotated[
        str | None, option("--prompt", help="with --data: the template of the prompt, such as '{note} Department:'")
    ] = None,
) -> None:
    """Print a whole configuration with comments, to start from: `fedcollm init --data notes.csv > my.yaml`."""
    from fedcollm.config.loading import commented_yaml, load_config
    from fedcollm.errors import UserError

    if data is None:
        if given := [name for name, value in (("--answer", answer), ("--group", group), ("--prompt", prompt)) if value]:
            raise UserError(f"{given[0]} is for --data. Give your table with --data, or leave {given[0]} out.")
        print(commented_yaml(load_config(source or "icd10")), end="")
        return
    from fedcollm.data.proposals import Wishes
    from fedcollm.runs.proposal import propose

    proposal = propose(data, source, Wishes(prompt, answer, group))
    for finding in proposal.findings:
        print(f"# {' '.join(finding.split())}")
    print(commented_yaml(proposal.config), end="")
