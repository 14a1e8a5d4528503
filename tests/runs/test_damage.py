"""Whatever happens to a file of a run directory: each command says which file it is, or does without it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fedcollm
from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.errors import UserError
from fedcollm.report import write_report
from fedcollm.runs import runner
from fedcollm.runs.build import Federation
from fedcollm.runs.directory import load_round
from fedcollm.runs.runner import evaluate_run, rounds

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda data: data[: len(data) // 2],
    "a byte less": lambda data: data.rstrip()[:-1],
    "twice": lambda data: data + data,
    "binary": lambda data: bytes(range(256)) * 4,
    "null": lambda data: b"null\n",
    "a list of lists": lambda data: b"[[1], [2]]\n",
    "an empty object": lambda data: b"{}\n",
    "another version": lambda data: b'{"schema_version": 99, "round": "one", "healed": [], "scores": 7}\n',
    "deep": lambda data: b"[" * 100_000,
}
READ = {
    "resume": "config.yaml environment.json identity.json rounds.jsonl checkpoint.safetensors personal.json",
    "evaluate": "config.yaml identity.json checkpoint.safetensors",
    "report": "config.yaml environment.json data.json rounds.jsonl confusion.json confusion_start.json exhibits.json "
    "exhibits_start.json personal.json",
}


@pytest.fixture
def run(tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of one round, whose data and models are loaded once for all commands."""
    config = changed(tiny_config, {"federation.rounds": 1, "client.personal": True, "task.test_size": 10})
    built: list[Federation] = []
    build = runner.build_federation

    def once(*arguments: object, **options: object) -> Federation:
        if not built:
            built.append(build(*arguments, **options))  # pyright: ignore
        return built[0]

    monkeypatch.setattr(runner, "build_federation", once)
    fedcollm.run(config, tmp_path / "whole")
    return tmp_path / "whole"


def do(command: str, place: Path) -> str:
    """What a command says if it refuses; empty if it does not."""
    commands = {
        "resume": lambda: list(rounds(None, place, resume=True)),
        "evaluate": lambda: evaluate_run(place, "slm"),
        "report": lambda: write_report([place], place / "report.html"),
    }
    try:
        commands[command]()
    except UserError as error:
        return str(error)
    return ""


def test_every_file_that_a_command_reads_can_be_damaged_in_every_way(run: Path, tmp_path: Path):
    place, faults = tmp_path / "damaged", []
    for command, names in READ.items():
        for name in names.split():
            for how, damage in DAMAGES.items():
                shutil.rmtree(place, ignore_errors=True)
                shutil.copytree(run, place)
                (place / name).write_bytes(damage((run / name).read_bytes()))
                try:
                    said = do(command, place)
                except Exception as error:
                    faults.append(f"{command}, {name}, {how}: {type(error).__name__}: {error}"[:300])
                    continue
                if how == "twice" and name == "rounds.jsonl" and not said:
                    faults.append(f"{command}: rounds stand twice, and nothing is said")
                if said and name not in said:
                    faults.append(f"{command}, {name}, {how}: the message does not name the file: {said}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("record", [None, "no JSON", "[]", '{"round": 1, "of another version": 1}', '{"round": null}'])
def test_a_checkpoint_without_a_record_of_this_version(tmp_path: Path, record: str | None):
    file = tmp_path / "checkpoint.safetensors"
    save_file({"slm/a": torch.zeros(1)}, file, metadata=None if record is None else {"record": record})
    with pytest.raises(UserError, match=r"checkpoint\.safetensors can't be read"):
        load_round(tmp_path)
