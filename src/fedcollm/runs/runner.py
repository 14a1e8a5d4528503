"""One run: build the federation, go through the rounds, keep every finished one."""

import contextlib
import json
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedcollm import metrics
from fedcollm.config import RunConfig
from fedcollm.data.partition import describe
from fedcollm.errors import UserError
from fedcollm.federation.server import Server
from fedcollm.messages import RoundRecord, Score
from fedcollm.modalities.base import Modality, Pool
from fedcollm.models.adapters import resolve_device, save_adapter
from fedcollm.privacy.accounting import Privacy
from fedcollm.progress import say
from fedcollm.runs import directory as directories
from fedcollm.runs.build import Federation, Inputs, build_federation
from fedcollm.runs.sharing import zero_shot
from fedcollm.storage import locked, write_atomically, writing
from fedcollm.training.fine_tuning import evaluate

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        directory: the run directory.
        records: one a round, round 0 first.
        adapters: role (`slm`, `llm`, and `clients/ID` of those that keep one) to directory in PEFT's format.
    """

    directory: Path
    records: list[RoundRecord]
    adapters: dict[str, Path]

    def to_pandas(self) -> "pandas.DataFrame":
        """One row a round, nested values as columns such as `scores.slm`."""
        import pandas

        return pandas.json_normalize([asdict(record) for record in self.records]).set_index("round")


def run(
    config: RunConfig,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    modality: Modality | None = None,
    pool: Pool | None = None,
) -> RunResult:
    """Run a federation in this process.

    Args:
        config: everything that the run depends on.
        out: run directory; by default `runs/NAME`.
        resume: go on with the run in that directory.
        modality: your own, instead of the one that `config.task.name` names.
        pool: your own data; needed with `modality`.

    Returns:
        Records and adapters, as they are on disk.

    Raises:
        UserError: the configuration, the data or the directory is not usable.
    """
    directory = Path(out) if out is not None else default_directory(config)
    for _ in rounds(config, directory, Inputs(modality, pool), resume=resume):
        pass
    return result(directory)


def default_directory(config: RunConfig) -> Path:
    """`runs/NAME`."""
    return Path("runs") / config.name


def result(directory: Path) -> RunResult:
    """What a run directory holds."""
    root = directory / "adapters"
    files = [file for place in ("", "clients/") for file in sorted(root.glob(f"{place}[!.]*/adapter_config.json"))]
    adapters = {str(file.parent.relative_to(root)): file.parent for file in files}
    return RunResult(directory, directories.read_records(directory), adapters)


def rounds(
    config: RunConfig | None,
    directory: Path,
    inputs: Inputs = Inputs(),
    *,
    resume: bool = False,
) -> Iterator[RoundRecord]:
    """Run, and yield each record once its round is safe on disk; with `resume`, the old ones first.

    Args:
        config: may be None when resuming: the directory knows it.
        directory: the run directory.
        inputs: what the run is given beside its configuration.
        resume: go on with the run in that directory.
    """
    if resume:
        config = _resumed_config(config, directory)
    elif config is None:
        raise ValueError("a new run needs a configuration")
    elif (directory / directories.CONFIG).exists():
        directories.start(directory, config)  # refuses
    fresh = not directory.exists()
    with locked(directory):
        try:
            inputs = replace(inputs, personal=directory / "adapters" / "clients")
            federation = build_federation(config, directory / "base", inputs)
        except BaseException:
            if fresh:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        if not resume:
            directories.start(directory, config)
        directories.write_json(directory, directories.ENVIRONMENT, environment(config, federation))
        directories.write_json(directory, directories.DATA, describe(federation.split))
        yield from _rounds(config, directory, federation, inputs.shared)


def _rounds(
    config: RunConfig, directory: Path, federation: Federation, shared: Path | None = None
) -> Iterator[RoundRecord]:
    server, privacy = federation.server, federation.privacy
    state = directories.load_round(directory)
    done = state[0].round if state else 0
    _announce(config, directory, privacy, done)
    if state:
        server.restore(state[1])
        if done == config.federation.rounds and not (directory / directories.OUTCOMES).exists():
            server.scores()
            _publish(directory, federation)
        _personalize(config, directory, server)
        yield from directories.read_records(directory)
    else:
        scores = zero_shot(config, server, shared) if shared else server.scores()
        first = RoundRecord(0, scores, epsilon=0.0 if privacy else None)
        directories.save_round(directory, first, server.adapters())
        yield first
    for index in range(done + 1, config.federation.rounds + 1):
        when = index, config.federation.rounds
        epsilon = _spend(directory, privacy, index) if privacy else None
        with _step_log(config, directory):
            record = server.run_round(index, config.evaluation.scores(*when), config.evaluation.scores_clients(*when))
        record = replace(record, epsilon=epsilon)
        (directory / directories.OUTCOMES).unlink(missing_ok=True)  # what is there is always of the saved round
        directories.save_round(directory, record, server.adapters())
        _publish(directory, federation)
        yield _personalize(config, directory, server) or record


@contextlib.contextmanager
def _step_log(config: RunConfig, directory: Path) -> Iterator[None]:
    """Write every optimizer step made inside to the run directory, where the configuration asks for it."""
    if not config.log_steps:
        yield
        return
    with (
        (directory / directories.STEPS).open("a", encoding="utf-8") as file,
        metrics.listening(lambda step: print(json.dumps(step.to_json()), file=file)),
    ):
        yield


def _personalize(config: RunConfig, directory: Path, server: Server) -> RoundRecord | None:
    """After the last round let clients tune θ for themselves, once; the record with their score, if they just did."""
    if not config.client.personal:
        return None
    record = directories.read_records(directory)[-1]
    done = (directories.read_json(directory, directories.PERSONAL) or {}).get("round")
    if record.round < config.federation.rounds or done == record.round:
        return None
    record, scores = server.personalize(record)
    directories.save_round(directory, record, server.adapters())
    directories.write_json(directory, directories.PERSONAL, {"round": record.round, "scores": scores})
    return record


def _announce(config: RunConfig, directory: Path, privacy: Privacy | None, done: int) -> None:
    """Say what the whole run will spend, before it spends anything."""
    if privacy is None:
        return
    rounds, started = config.federation.rounds, _started(directory, done)
    total = privacy.epsilon(started + rounds - done)
    again = f", {started - done} more that were started and not finished among them" if started > done else ""
    say(f"privacy: {rounds} rounds will spend ε = {total:.3g} at δ = {privacy.delta:g}{again}")


def _started(directory: Path, done: int) -> int:
    """How many rounds were ever started here."""
    return max(done, (directories.read_json(directory, directories.STARTED) or {}).get("rounds", 0))


def _spend(directory: Path, privacy: Privacy, index: int) -> float:
    """ε so far, the round that now begins included.

    A round counts from its start, written down before any client is asked: if it is never finished, the clients may
    have answered it all the same, and with fresh noise they answer it once more when the run is resumed.
    """
    started = _started(directory, index - 1) + 1
    epsilon = privacy.epsilon(started)
    directories.write_json(directory, directories.STARTED, {"rounds": started})
    return epsilon


def _publish(directory: Path, federation: Federation) -> None:
    """Write what is derived from the checkpoint: PEFT's files, confusion tables, outcomes, notes on the data."""
    server = federation.server
    with writing(directory):
        (directory / "adapters").mkdir(exist_ok=True)
        adapters = server.adapters()
        for role, model in server.pair.models().items():
            save_adapter(model, adapters[role], directory / "adapters" / role)
    confusion = {
        role: [[*pair, count] for pair, count in sorted(score.confusion.items())]
        for role, score in server.scored.items()
    }
    directories.write_json(directory, directories.CONFUSION, confusion)
    outcomes = {role: dict(score.outcomes) for role, score in server.scored.items()}
    directories.write_json(directory, directories.OUTCOMES, outcomes)
    if notes := dict.fromkeys(note for role in server.pair.models() for note in server.pair.modality.of(role).notes()):
        data = describe(federation.split)
        data["notes"] = [*data["notes"], *notes]
        directories.write_json(directory, directories.DATA, data)


def _resumed_config(config: RunConfig | None, directory: Path) -> RunConfig:
    """The directory's configuration; the one given may differ from it in the number of rounds only."""
    stored = directories.read_config(directory)
    if config is None:
        return stored
    rounds = config.federation.rounds
    extended = stored.model_copy(update={"federation": stored.federation.model_copy(update={"rounds": rounds})})
    if extended != config:
        wanted, there = config.model_dump(), extended.model_dump()
        keys = ", ".join(name for name in wanted if wanted[name] != there[name])
        raise UserError(
            f"{directory} was run with another configuration ({keys} differ). "
            "Resume it without naming one, or choose another --out."
        )
    return extended


def environment(config: RunConfig, federation: Federation) -> dict[str, Any]:
    """What a result may depend on beside the configuration."""
    packages = ("fedcollm", "torch", "transformers", "peft", "tokenizers", "numpy")
    return {
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
        "device": str(resolve_device(config.device)),
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "threads": torch.get_num_threads(),
        "dtype": federation.dtypes,
        "parameters": federation.parameters,
    }


def restore(directory: Path, role: str) -> tuple[RunConfig, Federation]:
    """A run's configuration, data and models, with the adapters that it left on disk.

    Args:
        directory: a run directory with at least one finished round.
        role: the one that is asked for, `slm` or `llm`.

    Raises:
        UserError: no run, no such role, or no finished round.
    """
    config = directories.read_config(directory)
    state = directories.load_round(directory)
    roles = [name for name in ("slm", "llm") if state and name in state[1]]
    if state is None or role not in roles:
        raise UserError(f"{directory} has no {role} adapter. Roles there: {', '.join(roles) or 'none yet'}.")
    federation = build_federation(config, directory / "base")
    federation.server.restore(state[1])
    return config, federation


def evaluate_run(directory: Path, role: str, write_examples: Path | None = None) -> Score:
    """Score the adapter that a run left on disk on the run's own test examples.

    Args:
        directory: a run directory with at least one finished round.
        role: `slm` or `llm`.
        write_examples: write the test examples to this file, one JSON object a line (text tasks).

    Raises:
        UserError: no run, no such role, or no finished round.
    """
    config, federation = restore(directory, role)
    pair, test = federation.server.pair, federation.split.test
    if write_examples:
        with writing(write_examples.parent):
            write_atomically(write_examples, pair.modality.of(role).write_examples(test))
    return evaluate(pair.modality.of(role), pair.models()[role], test, config.evaluation.batch_size, f"scoring {role}")
