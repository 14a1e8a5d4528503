"""A run directory: the only thing that `report`, `evaluate` and `export` read.

    config.yaml             the resolved configuration
    environment.json        versions, device, parameter counts
    data.json               how the data was split
    rounds.jsonl            one RoundRecord a line; round 0 is before any training
    checkpoint.safetensors  adapters, the server step's memory, the last record: the one file that `--resume` reads
    steps.jsonl             with `log_steps`: one optimizer step per line, as it is made
    started.json            under privacy: rounds that were started, those among them that were never finished
    adapters/{slm,llm}/     the same adapters in PEFT's own format
    adapters/clients/ID/    with `client.personal`: what clients in this process keep after the last round
    personal.json           with `client.personal`: the round after which they did, and each one's score
    base/{slm,llm}/         base models, only if this run made them (`pretrain_epochs`)
    confusion.json          role -> [true label, predicted label, examples], of the last round
    outcomes.json           role -> {test example's id: its main metric}, of the last scored round
    harness/                test examples and task file, written by `evaluate --harness`
    report.html             written by `report`

The checkpoint is replaced atomically once a round, and everything else is derived from it, so a process
that is killed at any moment leaves a directory that can be resumed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from fedcollm.config import RunConfig
from fedcollm.errors import UserError
from fedcollm.messages import Adapter, RoundRecord
from fedcollm.storage import remove_leftovers, replacing, write_atomically, writing

CONFIG, ENVIRONMENT, DATA, STARTED = "config.yaml", "environment.json", "data.json", "started.json"
ROUNDS, CHECKPOINT, REPORT = "rounds.jsonl", "checkpoint.safetensors", "report.html"
CONFUSION, OUTCOMES, PERSONAL = "confusion.json", "outcomes.json", "personal.json"
STEPS = "steps.jsonl"


def start(directory: Path, config: RunConfig) -> None:
    """Begin a run in a directory that holds none.

    Raises:
        UserError: it holds a run already, or can't be written.
    """
    if (directory / CONFIG).exists():
        raise UserError(
            f"{directory} already holds a run. Choose another --out, "
            f"or go on with: fedcollm run --resume --out {directory}"
        )
    with writing(directory):
        write_atomically(directory / CONFIG, config_text(config))


def config_text(config: RunConfig) -> str:
    """A resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def parse_config(file: Path) -> RunConfig:
    """Inverse of `config_text`, from a file.

    Raises:
        UserError: it is missing or malformed.
    """
    try:
        return RunConfig.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not a configuration that this version reads: {error}") from error


def read_config(directory: Path) -> RunConfig:
    """The resolved configuration of a run.

    Raises:
        UserError: the directory holds no run.
    """
    file = directory / CONFIG
    if not file.is_file():
        raise UserError(
            f"{directory} holds no run: {CONFIG} is missing. Give the directory that `fedcollm run --out` wrote."
        )
    return parse_config(file)


def read_records(directory: Path) -> list[RoundRecord]:
    """The records of all finished rounds, from round 0 on; empty if there are none."""
    file = directory / ROUNDS
    if not file.is_file():
        return []
    return [RoundRecord.from_json(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_json(directory: Path, name: str, value: Any) -> None:
    """Write one of the JSON files."""
    with writing(directory):
        write_atomically(directory / name, json.dumps(value, indent=1) + "\n")


def read_json(directory: Path, name: str) -> Any:
    """Read one of the JSON files; None if it is missing."""
    file = directory / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def save_round(directory: Path, record: RoundRecord, adapters: Mapping[str, Adapter]) -> None:
    """Commit a round: first the checkpoint, atomically, then the line in `rounds.jsonl`.

    Args:
        directory: the run directory.
        record: the round's record.
        adapters: role to adapter; and what else the next round depends on, in the shape of one.

    Raises:
        UserError: no space, no permission; the checkpoint is then still the previous one.
    """
    import safetensors.torch  # imports torch, which those who only read records do without

    tensors = {f"{role}/{name}": tensor for role, adapter in adapters.items() for name, tensor in adapter.items()}
    with writing(directory):
        remove_leftovers(directory / CHECKPOINT)
        with replacing(directory / CHECKPOINT) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata={"record": record.to_json()})
        _append_record(directory, record)


def load_round(directory: Path) -> tuple[RoundRecord, dict[str, Adapter]] | None:
    """The last committed round and its adapters; repairs `rounds.jsonl` if it lacks its line."""
    file = directory / CHECKPOINT
    if not file.is_file():
        return None
    adapters: dict[str, Adapter] = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            record = RoundRecord.from_json(tensors.metadata()["record"])
            for key in tensors.keys():  # noqa: SIM118
                role, name = key.split("/", 1)
                tensor = tensors.get_tensor(key).clone()  # a view keeps the file mapped: Windows would not replace it
                adapters.setdefault(role, {})[name] = tensor
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{file} can't be read: {error}. Restore it from a copy, or start again elsewhere.") from error
    with writing(directory):
        _append_record(directory, record)
    return record, adapters


def _append_record(directory: Path, record: RoundRecord) -> None:
    lines = [r.to_json() for r in read_records(directory) if r.round < record.round] + [record.to_json()]
    write_atomically(directory / ROUNDS, "\n".join(lines) + "\n")
