"""A run that trains nothing: the control of the section `control`, solved in closed form from sums over the clients."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fedcollm.config import AskedStatistics, ControlConfig, RunConfig
from fedcollm.federation import statistics
from fedcollm.federation.aggregation.base import Aggregate
from fedcollm.federation.server import Server
from fedcollm.messages import Adapter, RoundRecord, Score
from fedcollm.metrics import peak_memory_bytes
from fedcollm.modalities.base import Modality
from fedcollm.runs import directory as directories
from fedcollm.runs import privacy_budget
from fedcollm.runs.build import Federation

#: Role of the control in records, checkpoints and outcomes.
ROLE = "control"


@dataclass(frozen=True)
class Control:
    """What a control needs of a run.

    Attributes:
        server: the server, with the public and the test examples and the connection to the clients.
        settings: the features and the ridge.
        asked: what the clients are asked for.
        private_size: the number of examples of each client, which counts under privacy, where clients do not tell it.
    """

    server: Server
    settings: ControlConfig
    asked: AskedStatistics
    private_size: int

    @property
    def modality(self) -> Modality:
        """The modality as the SLM needs it."""
        return self.server.pair.modality.of("slm")

    def solve(self) -> tuple[Tensor, Aggregate | None]:
        """Return W, [d, C], and what came from the clients; None if there are none.

        Raises:
            RoundFailedError: too few clients sent statistics, or their mean can't be that of honest clients.
        """
        server, slm = self.server, self.server.pair.slm
        labelled = [example for example in server.public if example.label is not None]
        parts: list[tuple[Adapter, int]] = []
        if labelled:
            parts.append((statistics.moments(self.modality, labelled, self.settings, slm), len(labelled)))
        aggregate = server.ask_statistics(self.asked)
        if aggregate is not None:
            examples = aggregate.examples or len(aggregate.participants) * self.private_size
            parts.append((aggregate.adapter, examples))
        return statistics.solve_together(parts, self.settings.ridge), aggregate

    def score(self, weights: Tensor) -> Score:
        """Return the accuracy on the test examples, with a confusion table if the examples share their labels."""
        outcomes: dict[str, float] = {}
        confusion: Counter[tuple[str, str]] = Counter()
        parts = statistics.evidence(self.modality, self.server.test, self.settings, self.server.pair.slm)
        for examples, part in parts:
            predicted = [int(scores.argmax()) for scores in statistics.scores(weights, part)]
            right = [int(targets.argmax()) for targets in part.by_example(part.targets)]
            pairs = list(zip(right, predicted, strict=True))
            outcomes |= {e.id: float(one == other) for e, (one, other) in zip(examples, pairs, strict=True)}
            confusion.update((part.labels[one], part.labels[other]) for one, other in pairs if part.labels)
        return Score({"acc": sum(outcomes.values())}, len(outcomes), confusion, outcomes)


def control_rounds(config: RunConfig, directory: Path, federation: Federation) -> Iterator[RoundRecord]:
    """Yield the records of a run with a control: round 0, in which nothing is scored, and round 1, its only one.

    If round 1 is finished already, nobody is asked again.

    Args:
        config: the run's configuration.
        directory: the run directory.
        federation: the parts of the run.

    Raises:
        UserError: the round failed, or the examples do not suit a control in closed form.
    """
    assert config.control is not None
    control = Control(federation.server, config.control, config.statistics, config.task.private_size)
    state = directories.load_round(directory)
    if state is None:
        directories.save_round(directory, RoundRecord(0, epsilon=0.0 if federation.privacy else None), {})
    elif state[0].round and not (directory / directories.OUTCOMES).exists():
        _publish(directory, control.score(state[1][ROLE]["weights"]))
    yield from directories.read_records(directory)
    if state is None or not state[0].round:
        yield _only_round(directory, federation, control)


def _only_round(directory: Path, federation: Federation, control: Control) -> RoundRecord:
    """Solve and score the control, and save the record of the round."""
    epsilon = None
    if federation.privacy:
        privacy_budget.announce(directory, federation.privacy, 1, 0)
        epsilon = privacy_budget.spend(directory, federation.privacy, 1)
    start = time.perf_counter()
    weights, aggregate = control.solve()
    directories.write_profile(directory, control.server.profile)
    score = control.score(weights)
    seconds = {"clients": aggregate.seconds.get("clients", 0.0) if aggregate else 0.0}
    seconds["evaluation"] = max(time.perf_counter() - start - seconds["clients"], 0.0)
    record = RoundRecord(
        1,
        {ROLE: score.value},
        participants=aggregate.participants if aggregate else (),
        bytes_up=aggregate.bytes_up if aggregate else 0,
        bytes_down=aggregate.bytes_down if aggregate else 0,
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(),
        lost=aggregate.lost if aggregate else {},
        epsilon=epsilon,
    )
    (directory / directories.OUTCOMES).unlink(missing_ok=True)
    directories.save_round(directory, record, {ROLE: {"weights": weights}})
    _publish(directory, score)
    return record


def _publish(directory: Path, score: Score) -> None:
    """Write the confusion table and the outcomes."""
    confusion = [[*pair, count] for pair, count in sorted(score.confusion.items())]
    directories.write_json(directory, directories.CONFUSION, {ROLE: confusion})
    directories.write_json(directory, directories.OUTCOMES, {ROLE: dict(score.outcomes)})
