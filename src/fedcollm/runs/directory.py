"""The files of a run directory, which is all that `report` and `evaluate` read.

    config.yaml             the resolved configuration
    environment.json        versions, device and parameter counts that the run began with, and what had changed when it
                            was resumed
    data.json               how the data was split
    identity.json           digests of data files, examples and base weights; a list, with one more entry for each
                            change that was accepted
    rounds.jsonl            one RoundRecord per line; round 0 is before any training
    checkpoint.safetensors  adapters, the server optimizer's state and the last record; `--resume` starts from it;
                            of a run with `control`, its weights instead of adapters
    steps.jsonl             with `log_steps`: one optimizer step per line, written as the run goes on
    started.json            under privacy: the number of rounds started so far, including those never finished
    adapters/{slm,llm}/     the same adapters in PEFT's own format
    adapters/clients/ID/    with `client.personal`: the adapters that clients in this process keep after the last round
    personal.json           with `client.personal`: the round after which clients kept an adapter, and their scores
    opening.safetensors     of a deployment with secure aggregation: the sum of the last round that was opened
    base/{slm,llm}/         base models that this run pretrained itself (`pretrain_epochs`)
    confusion.json          role -> [true label, predicted label, number of examples], after the last round
    confusion_start.json    the same before any training
    outcomes.json           role -> {id of a test example: main metric}, after the last scored round
    exhibits.json           test examples with the models' answers for the report, after the last round
    exhibits_start.json     answers before any training, to more test examples; those of exhibits.json are among them
    profile.json            with `federation.profile`: how the clients' labels, lengths and contents are distributed, as
                            sums over all of them
    harness/                test examples and the task file, written by `evaluate --harness`
    report.html             written by `report`

The checkpoint is replaced atomically after each round, and the other results are derived from it. A process that is
killed at any moment leaves a directory that can be resumed.

Only the owner can enter a run directory and read what is in it, since adapters, outcomes and exhibits may show private
examples. To share a run, change its permissions, for example with `chmod -R go+rX runs/icd10`.
"""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from fedcollm.config import SCHEMA_VERSION, RunConfig
from fedcollm.config.loading import explain
from fedcollm.config.yaml_text import read_yaml, write_yaml
from fedcollm.errors import UserError
from fedcollm.messages import Adapter, RoundRecord
from fedcollm.progress import say
from fedcollm.runs.shapes import check_shape
from fedcollm.storage import remove_leftovers, replacing, write_atomically, writing

if TYPE_CHECKING:
    from fedcollm.data.audit.profiles import Profile

CONFIG, ENVIRONMENT, DATA, STARTED = "config.yaml", "environment.json", "data.json", "started.json"
ROUNDS, CHECKPOINT, REPORT = "rounds.jsonl", "checkpoint.safetensors", "report.html"
CONFUSION, OUTCOMES, PERSONAL = "confusion.json", "outcomes.json", "personal.json"
STEPS, IDENTITY, EXHIBITS = "steps.jsonl", "identity.json", "exhibits.json"
PROFILE = "profile.json"
CONFUSION_START, EXHIBITS_START = "confusion_start.json", "exhibits_start.json"

_DAMAGES = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


def default_directory(config: RunConfig) -> Path:
    """Return the run directory of a configuration where none is given: `runs/NAME`."""
    return Path("runs") / config.name


def start(directory: Path, config: RunConfig) -> None:
    """Begin a run in a directory that holds none yet.

    Raises:
        UserError: the directory already holds a run, or it can't be written.
    """
    refuse_existing(directory)
    write_config(directory, config)


def refuse_existing(directory: Path) -> None:
    """Refuse a directory that holds a run, or what is left of one.

    Raises:
        UserError: there is a configuration or a checkpoint in it.
    """
    if (directory / CONFIG).exists() or (directory / CHECKPOINT).exists():
        raise UserError(
            f"{directory} already holds a run. Choose another --out, "
            f"or resume it with: fedcollm run --resume --out {directory}"
        )


def write_config(directory: Path, config: RunConfig) -> None:
    """Write the resolved configuration of a run.

    Raises:
        UserError: the directory can't be written.
    """
    with writing(directory):
        write_atomically(directory / CONFIG, config_text(config))


def write_profile(directory: Path, profile: "Profile | None") -> None:
    """Write the profile of the clients' data, if there is one.

    Raises:
        UserError: the directory can't be written.
    """
    if profile is not None:
        with writing(directory):
            write_atomically(directory / PROFILE, profile.text())
        say(f"the profile of the clients' data: {directory / PROFILE}, for fedcollm audit DATA --federation")


def config_text(config: RunConfig) -> str:
    """Return a resolved configuration as YAML."""
    return write_yaml(config.model_dump(mode="json"), sort_keys=False)


def parse_config(file: Path) -> RunConfig:
    """Read a file that holds the output of `config_text`.

    In such a file a missing `schema_version` means an older version, since fedcollm itself wrote it. In a user's own
    YAML file it means the present version: see `RunConfig`.

    Raises:
        UserError: the file is missing or malformed, or another version of fedcollm wrote it.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a configuration that fedcollm wrote: {error}") from error
    return parse_config_text(text, str(file))


#: Key with which every configuration that fedcollm writes ends.
_LAST_KEY = list(RunConfig.model_fields)[-1]


def parse_config_text(text: str, source: str) -> RunConfig:
    """Read the output of `config_text`, as `parse_config` does.

    Args:
        text: the configuration.
        source: where it is from, for messages.

    Raises:
        UserError: it is malformed, or another version of fedcollm wrote it.
    """
    try:
        values: Any = read_yaml(text)
        if isinstance(values, dict):
            _check_version(source, cast(Mapping[str, Any], values).get("schema_version", 1))
            if _LAST_KEY not in values:
                raise ValueError(f"its end is missing, which has the key {_LAST_KEY}. Restore the whole file")
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source} is not a configuration that fedcollm wrote: {explain(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not a configuration that fedcollm wrote: {error}") from error


def _check_version(file: str, version: Any) -> None:
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{file} was written by another version of fedcollm: its schema_version is {version}, and this version "
            f"reads {SCHEMA_VERSION}. Use the version that wrote it, or start again with this one in another directory."
        )


def read_config(directory: Path) -> RunConfig:
    """Return the resolved configuration of a run.

    Raises:
        UserError: the directory holds no run, or a run of another version of fedcollm.
    """
    file = directory / CONFIG
    if not file.is_file():
        raise UserError(
            f"{directory} holds no run: {CONFIG} is missing. Give the directory that `fedcollm run --out` wrote."
        )
    return parse_config(file)


def recorded_bases(directory: Path) -> Mapping[str, str] | None:
    """Return role to the name of its healed base, as a run recorded it; None if it did not."""
    environment: dict[str, Any] = read_json(directory, ENVIRONMENT) or {}
    return environment.get("healed")


def check_healed(directory: Path, healed: Mapping[str, str]) -> None:
    """Refuse to continue or to score a run with a healed base that is not the one that it began with.

    Args:
        directory: the run directory.
        healed: role to the name of its healed base, which depends on the text, the settings and the dtype.

    Raises:
        UserError: a base is another one.
    """
    recorded = recorded_bases(directory)
    before = healed if recorded is None else recorded
    for role in sorted({*before, *healed}):
        if before.get(role) != healed.get(role):
            raise UserError(
                f"{role}.heal: the run in {directory} began with the base {before.get(role)}, and here it is "
                f"{healed.get(role)}: the text, the whole model or the hardware is not the same. Restore it, or start "
                "a new run in another directory."
            )


def read_records(directory: Path) -> list[RoundRecord]:
    """Return the records of all finished rounds, starting with round 0; an empty list if there are none.

    Raises:
        UserError: a line is no record, or the rounds are not in their order, each once.
    """
    file = directory / ROUNDS
    if not file.is_file():
        return []
    try:
        records = [RoundRecord.from_json(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except _DAMAGES as error:
        raise damaged(file, error) from error
    for before, after in pairwise(records):
        if after.round <= before.round:
            raise damaged(file, ValueError(f"round {after.round} comes after round {before.round}"))
    return records


def write_json(directory: Path, name: str, value: Any) -> None:
    """Write one of the JSON files of a run directory."""
    with writing(directory):
        write_atomically(directory / name, json.dumps(value, indent=1) + "\n")


def read_json(directory: Path, name: str) -> Any:
    """Return the content of one of the JSON files of a run directory; None if the file is missing.

    Raises:
        UserError: it can't be read, or has another shape than this file has.
    """
    file = directory / name
    if not file.is_file():
        return None
    try:
        text = file.read_text(encoding="utf-8")
        check_shape(name, text)
        return json.loads(text)
    except _DAMAGES as error:
        raise damaged(file, error) from error


def damaged(file: Path, error: Exception) -> UserError:
    """Return the error that says which file of a run can't be read, and why."""
    reason = explain(error) if isinstance(error, ValidationError) else str(error)
    return UserError(
        f"{file} is not a file that this version of fedcollm wrote: {' '.join(reason.split())[:200]}. Restore it, or "
        "run again."
    )


def save_round(directory: Path, record: RoundRecord, adapters: Mapping[str, Adapter]) -> None:
    """Commit a round: first the checkpoint, atomically, then the line in `rounds.jsonl`.

    Args:
        directory: the run directory.
        record: the round's record.
        adapters: role to adapter, and any other tensors that the next round depends on, such as the state of the
            server optimizer, under a name of their own.

    Raises:
        UserError: the directory can't be written (no space, no permission); the previous checkpoint is then intact.
    """
    import safetensors.torch  # imported here because it loads torch, which reading records does not need

    tensors = {f"{role}/{name}": tensor for role, adapter in adapters.items() for name, tensor in adapter.items()}
    with writing(directory):
        remove_leftovers(directory / CHECKPOINT)
        with replacing(directory / CHECKPOINT) as temporary:
            cast(Any, safetensors.torch).save_file(tensors, temporary, metadata={"record": record.to_json()})
        _append_record(directory, record)


def load_round(directory: Path) -> tuple[RoundRecord, dict[str, Adapter]] | None:
    """Return the last committed round's record and adapters; None if no round is committed.

    If the process was killed before it wrote the round's line in `rounds.jsonl`, write it now.

    Raises:
        UserError: the checkpoint can't be read.
    """
    file = directory / CHECKPOINT
    if not file.is_file():
        return None
    adapters: dict[str, Adapter] = {}
    try:
        with cast(Any, safe_open)(file, framework="pt") as tensors:
            record = RoundRecord.from_json(tensors.metadata()["record"])
            for key in tensors.keys():  # noqa: SIM118
                role, name = key.split("/", 1)
                tensor = tensors.get_tensor(
                    key
                ).clone()  # a view would keep the file mapped, and Windows can't replace it then
                adapters.setdefault(role, {})[name] = tensor
    except (SafetensorError, *_DAMAGES) as error:
        raise UserError(f"{file} can't be read: {error}. Restore it from a copy, or start again elsewhere.") from error
    with writing(directory):
        _append_record(directory, record)
    return record, adapters


def _append_record(directory: Path, record: RoundRecord) -> None:
    lines = [r.to_json() for r in read_records(directory) if r.round < record.round] + [record.to_json()]
    write_atomically(directory / ROUNDS, "\n".join(lines) + "\n")
