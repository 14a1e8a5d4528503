"""Do one run: build the federation, go through its rounds, and save every finished round."""

import contextlib
import json
import os
import shutil
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedcollm import metrics
from fedcollm.config import RunConfig
from fedcollm.config.paths import with_absolute_paths
from fedcollm.config.words import changes_in_words
from fedcollm.data.partition import describe
from fedcollm.data.pool import Pool
from fedcollm.errors import UserError
from fedcollm.federation.server import Server
from fedcollm.federation.standouts import standouts
from fedcollm.messages import Adapter, RoundRecord, Score
from fedcollm.modalities.base import Modality
from fedcollm.models.adapters import resolve_device, save_adapter
from fedcollm.models.processes import current
from fedcollm.progress import say, track
from fedcollm.runs import directory as directories
from fedcollm.runs import privacy_budget
from fedcollm.runs.build import Federation, Inputs, build_federation
from fedcollm.runs.card import run_facts, write_card
from fedcollm.runs.controls import control_rounds
from fedcollm.runs.environment import environment
from fedcollm.runs.environment import record as record_environment
from fedcollm.runs.exhibits import write_exhibits, write_first_answers
from fedcollm.runs.identity import check as check_identity
from fedcollm.runs.identity import identity_of
from fedcollm.runs.identity import record as record_identity
from fedcollm.runs.identity import recorded as recorded_bases
from fedcollm.runs.memory_limit import limit_in_words
from fedcollm.runs.portable import copy_input_files, portable_of, write_portable
from fedcollm.runs.resolve import resolved, with_number
from fedcollm.runs.sharing import zero_shot
from fedcollm.runs.shrink_plan import base_names, on_recorded_bases
from fedcollm.storage import append_to, check_place, locked, make_directory, write_atomically, writing
from fedcollm.training.fine_tuning import evaluate

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingTypeStubs]

    from fedcollm.runs.predictor import Predictor


@dataclass(frozen=True)
class RunResult:
    """The result of a run, as it is on disk.

    Attributes:
        directory: the run directory.
        records: one record per round, starting with round 0.
        adapters: role to a directory in PEFT's format: `slm`, `llm`, and `clients/ID` for each client that keeps an
            adapter of its own.
    """

    directory: Path
    records: list[RoundRecord]
    adapters: dict[str, Path]

    def to_pandas(self) -> "pandas.DataFrame":
        """Return one row per round, with nested values in columns such as `scores.slm`."""
        import pandas  # pyright: ignore[reportMissingTypeStubs]

        return cast(Any, pandas).json_normalize([asdict(record) for record in self.records]).set_index("round")

    def load(self, role: str = "slm", device: str = "auto") -> "Predictor":
        """Return the trained model of a role, ready to be asked: see `Predictor`.

        Args:
            role: `slm`, `llm`, or `clients/ID` for the adapter that a client keeps.
            device: where it will run, as in the configuration.

        Raises:
            UserError: the run has no adapter of that role, or its base can't be made again.
        """
        from fedcollm.runs.predictor import Predictor

        if role not in self.adapters:
            raise UserError(
                f"{self.directory} has no {role} adapter. Roles there: {', '.join(self.adapters) or 'none yet'}."
            )
        return Predictor.load(self.adapters[role], device)


def run(
    config: RunConfig,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    accept_changed_data: bool = False,
    modality: Modality | None = None,
    pool: Pool | None = None,
) -> RunResult:
    """Run a federation in this process.

    Args:
        config: the run's configuration.
        out: run directory; by default `runs/NAME`.
        resume: continue the run in that directory.
        accept_changed_data: continue it although its data or base models are not those that it began with.
        modality: your own modality; by default the one of the task that `config.task.name` names.
        pool: your own data; needed if you give a modality.

    Returns:
        The records and adapters of the run.

    Raises:
        UserError: the configuration, the data or the directory is not usable.
    """
    directory = Path(out) if out is not None else directories.default_directory(config)
    given = Inputs(modality, pool, accept_changed_data=accept_changed_data)
    for _ in rounds(config, directory, given, resume=resume):
        pass
    return result(directory)


def result(directory: Path) -> RunResult:
    """Return the result that a run directory holds."""
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
    """Do a run, and yield the record of each round once it is safe on disk.

    Args:
        config: the run's configuration. To resume a run with the configuration in its directory, give None.
        directory: the run directory.
        inputs: what the run is given in addition to its configuration.
        resume: continue the run in that directory; the records of its finished rounds come first.

    Raises:
        UserError: the configuration, the data or the directory is not usable, or a round failed.
    """
    current()  # refuses processes that would all do the same run
    if config is not None:
        config = with_absolute_paths(config)
        resolve_device(config.device)
    check_place(directory)
    if resume:
        config = _resumed_config(config, directory)
    elif config is None:
        raise ValueError("a new run needs a configuration")
    else:
        directories.refuse_existing(directory)
    fresh = not directory.exists()
    if inputs.memory:
        say(limit_in_words(inputs.memory))
    with locked(directory):
        if resume:
            directories.check_healed(directory, base_names(config, inputs.modality))
        try:
            config, pool = resolved(config, inputs.pool)
            inputs = replace(inputs, pool=pool, personal=directory / "adapters" / "clients")
            federation = build_federation(config, directory / "base", inputs)
        except BaseException:
            if fresh:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        now = identity_of(config.task, federation.split, federation.server.pair, directory)
        if resume:
            if not inputs.accept_changed_data:
                check_identity(directory, config, now)
            directories.write_config(directory, config)  # its number of rounds may be a new one
        else:
            directories.start(directory, config)
        record_identity(directory, now)
        record_environment(directory, environment(config, federation, inputs.memory))
        directories.write_json(directory, directories.DATA, _data(federation))
        if config.control is None:
            yield from _rounds(config, directory, federation, inputs.shared)
        else:
            yield from control_rounds(config, directory, federation)


def _rounds(
    config: RunConfig, directory: Path, federation: Federation, shared: Path | None = None
) -> Iterator[RoundRecord]:
    """Yield the records of the finished rounds, then do the remaining rounds."""
    server, privacy = federation.server, federation.privacy
    state = directories.load_round(directory)
    done = state[0].round if state else 0
    if privacy:
        privacy_budget.announce(directory, privacy, config.federation.rounds, done)
    if state:
        _restore(server, directory, state[1])
        if done == config.federation.rounds and not (directory / directories.OUTCOMES).exists():
            server.scores()
            write_exhibits(directory, server)
            _publish(config, directory, federation)
        if done == config.federation.rounds:
            say(f"{directory}: all {done} rounds were done before")
        _personalize(config, directory, server)
        yield from directories.read_records(directory)
    else:
        first = server.prepare(config.statistics)
        directories.write_profile(directory, server.profile)
        scores = zero_shot(config, server, shared) if shared else server.scores()
        first = replace(first, scores=scores, epsilon=0.0 if privacy else None)
        _write_confusion(directory, directories.CONFUSION_START, server)
        write_first_answers(directory, server)
        directories.save_round(directory, first, server.adapters())
        yield first
    left = range(done + 1, config.federation.rounds + 1)
    for index in track(left, "rounds", config.federation.rounds, done):
        when = index, config.federation.rounds
        epsilon = privacy_budget.spend(directory, privacy, index) if privacy else None
        with _step_log(config, directory):
            record = server.run_round(index, config.evaluation.scores(*when), config.evaluation.scores_clients(*when))
        record = replace(record, epsilon=epsilon)
        if index == config.federation.rounds:
            record = _with_standouts(config, directory, record)
        for name in (directories.OUTCOMES, directories.EXHIBITS):  # they must never be older than the checkpoint
            (directory / name).unlink(missing_ok=True)
        directories.save_round(directory, record, server.adapters())
        if index == config.federation.rounds:
            write_exhibits(directory, server)
        _publish(config, directory, federation)
        with _step_log(config, directory):
            personalized = _personalize(config, directory, server)
        yield personalized or record


def _with_standouts(config: RunConfig, directory: Path, record: RoundRecord) -> RoundRecord:
    """Return the last record with a sentence for each client that stands out in the run, and say these sentences."""
    sentences = standouts([*directories.read_records(directory), record], config.task.cleaning is not None)
    for sentence in sentences:
        say(sentence)
    return replace(record, notes=(*record.notes, *sentences))


def _restore(server: Server, directory: Path, adapters: Mapping[str, Adapter]) -> None:
    """Load the checkpoint's adapters into the server's models.

    Raises:
        UserError: they don't fit, because a base model or the checkpoint is another one than the run had.
    """
    try:
        server.restore(adapters)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{directory / directories.CHECKPOINT} does not fit the models of this run ({error}). Restore the "
            "checkpoint and the base models that the run had, or start a new run in another directory."
        ) from error


@contextlib.contextmanager
def _step_log(config: RunConfig, directory: Path) -> Generator[None, None, None]:
    """Append every optimizer step made in the block to `steps.jsonl`, if the configuration asks for it."""
    if not config.log_steps:
        yield
        return
    with (
        os.fdopen(append_to(directory / directories.STEPS), "a", encoding="utf-8") as file,
        metrics.listening(lambda step: print(json.dumps(step.to_json()), file=file)),
    ):
        yield


def _personalize(config: RunConfig, directory: Path, server: Server) -> RoundRecord | None:
    """After the last round, let the clients tune θ once more for themselves, unless they already have.

    Returns:
        The last record, with the clients' score added; None if there was nothing to do.
    """
    if not config.client.personal:
        return None
    record = directories.read_records(directory)[-1]
    saved: dict[str, Any] = directories.read_json(directory, directories.PERSONAL) or {}
    if record.round < config.federation.rounds or saved.get("round") == record.round:
        return None
    record, scores = server.personalize(record)
    directories.save_round(directory, record, server.adapters())
    directories.write_json(directory, directories.PERSONAL, {"round": record.round, "scores": scores})
    return record


def _publish(config: RunConfig, directory: Path, federation: Federation) -> None:
    """Write the files that are derived from the checkpoint: adapters, confusion tables, outcomes, notes on the data."""
    server = federation.server
    with writing(directory):
        make_directory(directory / "adapters")
        adapters = server.adapters()
        for role, model in server.pair.models().items():
            place = directory / "adapters" / role
            save_adapter(model, adapters[role], place)
            copy_input_files(str(getattr(model.get_base_model(), "name_or_path", "")), place)
            if federation.shipped:
                facts = server.pair.modality.of(role).facts()
                write_portable(place, portable_of(config, role, facts, recorded_bases(directory, role)))
    _write_confusion(directory, directories.CONFUSION, server)
    outcomes = {role: dict(score.outcomes) for role, score in server.scored.items()}
    directories.write_json(directory, directories.OUTCOMES, outcomes)
    if notes := dict.fromkeys(note for role in server.pair.models() for note in server.pair.modality.of(role).notes()):
        data = _data(federation)
        data["notes"] = [*data["notes"], *notes]
        directories.write_json(directory, directories.DATA, data)
    for role in server.pair.models() if federation.shipped else ():
        write_card(directory / "adapters" / role, run_facts(directory, role))


def _write_confusion(directory: Path, name: str, server: Server) -> None:
    """Write how the models of each role confused labels when they were last scored."""
    confusion = {
        role: [[*pair, count] for pair, count in sorted(score.confusion.items())]
        for role, score in server.scored.items()
    }
    directories.write_json(directory, name, confusion)


def _data(federation: Federation) -> dict[str, Any]:
    """Return what `data.json` holds: a summary of the split, and the name of the main metric."""
    return describe(federation.split) | {"metric": federation.server.pair.modality.of("slm").metric}


def _resumed_config(config: RunConfig | None, directory: Path) -> RunConfig:
    """Return the configuration of the run in a directory, with the number of rounds of the one given.

    Raises:
        UserError: the configuration given differs from it in anything else.
    """
    stored = directories.read_config(directory)
    if config is None:
        return stored
    rounds = config.federation.rounds
    if config.task.clients is None:  # the run counted the groups of its data
        config = with_number(config, stored.task.clients or 1)
    extended = stored.model_copy(update={"federation": stored.federation.model_copy(update={"rounds": rounds})})
    if extended != config:
        raise UserError(
            f"{directory} was run with a different configuration ({'; '.join(changes_in_words(config, extended))}). "
            "Resume it without naming a configuration, or choose another --out."
        )
    return extended


def restore(directory: Path, role: str, accept_changed_data: bool = False) -> tuple[RunConfig, Federation]:
    """Load a run's configuration, data and models, with the adapters of its last finished round.

    Args:
        directory: a run directory with at least one finished round.
        role: `slm` or `llm`, which the run must have.
        accept_changed_data: load them although data or base models are not those of the run.

    Raises:
        UserError: the directory holds no run, no finished round, no adapter of that role, or a run with a control, or
            the data or a base model is not the run's.
    """
    config = directories.read_config(directory)
    if config.control is not None:
        raise UserError(
            f"{directory} is a run with a control, which trained nothing, so there is no adapter to score. The score "
            f"of the control is `control` in {directories.ROUNDS}, and fedcollm report shows it."
        )
    state = directories.load_round(directory)
    roles = [name for name in ("slm", "llm") if state and name in state[1]]
    if state is None or role not in roles:
        raise UserError(f"{directory} has no {role} adapter. Roles there: {', '.join(roles) or 'none yet'}.")
    federation = build_federation(on_recorded_bases(config, directory), directory / "base")
    if not accept_changed_data:
        check_identity(directory, config, identity_of(config.task, federation.split, federation.server.pair, directory))
    _restore(federation.server, directory, state[1])
    return config, federation


def evaluate_run(
    directory: Path, role: str, write_examples: Path | None = None, *, accept_changed_data: bool = False
) -> Score:
    """Score a role's adapter of a run's last finished round on the run's own test examples.

    Args:
        directory: a run directory with at least one finished round.
        role: `slm` or `llm`.
        write_examples: file to write the test examples to, one JSON object per line (text tasks only).
        accept_changed_data: score it although data or base models are not those of the run.

    Raises:
        UserError: the directory holds no run, no finished round, or no adapter of that role, or the data or a base
            model is not the run's.
    """
    config, federation = restore(directory, role, accept_changed_data)
    pair, test = federation.server.pair, federation.split.test
    if write_examples:
        with writing(write_examples.parent):
            write_atomically(write_examples, pair.modality.of(role).write_examples(test))
    return evaluate(pair.modality.of(role), pair.models()[role], test, config.evaluation.batch_size, f"scoring {role}")
