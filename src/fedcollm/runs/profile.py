"""Predict the seconds, memory and bytes of a run from a few batches, timed with its real models and data."""

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedcollm.config import AskedStatistics, RunConfig
from fedcollm.errors import UserError
from fedcollm.federation import statistics
from fedcollm.federation.cohort import sample
from fedcollm.messages import adapter_bytes
from fedcollm.metrics import peak_memory_bytes
from fedcollm.progress import say
from fedcollm.runs.build import Federation, build_federation
from fedcollm.training.batches import Collator, minibatches
from fedcollm.training.distillation import distil
from fedcollm.training.fine_tuning import evaluate, fit

#: Number of batches timed per part. `minibatches` sorts within a window of at least this many batches, so that it cuts
#: the chosen examples into the chosen batches again.
_BATCHES = 6


@dataclass(frozen=True)
class Measured:
    """What a run would take on this machine under its present load.

    Attributes:
        round_seconds: seconds per round by part (`clients`, `distillation`, `evaluation`), the mean over all rounds
            after round 0. `clients` is missing if their training is not covered.
        start_seconds: seconds to load data and models and to score every role in round 0, before training.
        run_seconds: seconds of the start and all rounds; None if `notes` name a part that is not covered.
        peak_memory_bytes: highest resident memory of this process up to the end of the measurement.
        bytes_up: bytes that a client sends per round; 0 without clients, None if not covered.
        bytes_down: bytes that a client receives per round; 0 without clients, None if not covered.
        run_bytes: bytes in both directions over all rounds and all clients asked; None if not covered.
        notes: what is not covered, one sentence each.
    """

    round_seconds: dict[str, float]
    start_seconds: float
    run_seconds: float | None
    peak_memory_bytes: int
    bytes_up: int | None
    bytes_down: int | None
    run_bytes: int | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Passes:
    """Seconds of one pass over each part of the data.

    Attributes:
        fit: client id to the seconds of one epoch over its D_k; None if not covered.
        distillation: seconds of one epoch over D_a; 0 without an LLM.
        scoring: role to the seconds of one pass over the test examples.
    """

    fit: Mapping[str, float] | None
    distillation: float
    scoring: Mapping[str, float]


@dataclass(frozen=True)
class Plan:
    """How often a run makes each pass.

    Attributes:
        asked: the cohort of each round, as lists of client ids.
        client_epochs: epochs over D_k per round.
        server_epochs: epochs over D_a per round.
        scored: indices of the rounds, from 1, after which the server's models are scored.
        clients_scored: indices of the rounds in which the cohort scores its tuned SLMs as well.
        personal: ids of the clients that tune and score an adapter of their own after the last round.
    """

    asked: Sequence[Sequence[str]]
    client_epochs: int
    server_epochs: int
    scored: Sequence[int]
    clients_scored: Sequence[int]
    personal: Sequence[str] = ()


def measure(config: RunConfig) -> Measured:
    """Build the federation as a run does, time a few batches of each part, and scale up. Leave no files.

    Args:
        config: the run's configuration.

    Raises:
        UserError: the model, the adapter or the data is not usable, with the message that the run would give.
    """
    if config.control is not None:
        raise UserError("--measure times training, and a run with control trains nothing. Run it instead of measuring.")
    with tempfile.TemporaryDirectory(prefix="fedcollm-measure-") as base:
        start = time.perf_counter()
        federation = build_federation(config, Path(base))
        loading = time.perf_counter() - start
        asked = _asked(config, federation)
        passes = _passes(config, federation)
        peak = peak_memory_bytes()
    personal: Sequence[str] = federation.server.transport.clients() if config.client.personal else ()
    plan, notes = _plan(config, asked, personal), tuple(_uncovered(config, federation))
    totals = part_seconds(passes, plan)
    first = loading + sum(passes.scoring.values())
    up, down, both = _bytes(federation, asked, len(personal), config.statistics)
    return Measured(
        round_seconds={part: seconds / len(asked) for part, seconds in totals.items()},
        start_seconds=first,
        run_seconds=None if notes else first + sum(totals.values()),
        peak_memory_bytes=peak,
        bytes_up=up,
        bytes_down=down,
        run_bytes=both,
        notes=notes,
    )


def part_seconds(passes: Passes, plan: Plan) -> dict[str, float]:
    """Return the seconds of all rounds after round 0 together, by part.

    >>> once = Passes({"a": 1.0, "b": 3.0}, 5.0, {"slm": 0.5, "llm": 2.0})
    >>> part_seconds(once, Plan([["a", "b"], ["b"]], 2, 1, [2], [2]))
    {'clients': 14.0, 'distillation': 10.0, 'evaluation': 3.0}
    """
    seconds: dict[str, float] = {}
    if passes.fit is not None:
        epochs = [passes.fit[client] for clients in (*plan.asked, plan.personal) for client in clients]
        seconds["clients"] = plan.client_epochs * sum(epochs)
    seconds["distillation"] = len(plan.asked) * plan.server_epochs * passes.distillation
    scored_clients = sum(len(plan.asked[index - 1]) for index in plan.clients_scored) + len(plan.personal)
    seconds["evaluation"] = len(plan.scored) * sum(passes.scoring.values())
    seconds["evaluation"] += scored_clients * passes.scoring["slm"]
    return seconds


def chosen_batches(examples: Sequence[Any], sizes: Sequence[int], batch_size: int, count: int) -> list[list[Any]]:
    """Return batches of examples of similar size, spread evenly from the smallest examples to the largest.

    Args:
        examples: examples in any order.
        sizes: size of each example.
        batch_size: examples per batch.
        count: number of batches to choose; all of them if there are fewer.

    >>> chosen_batches("abcdefgh", [8, 7, 6, 5, 4, 3, 2, 1], 2, 2)
    [['f', 'e'], ['b', 'a']]
    """
    order = sorted(range(len(examples)), key=lambda i: sizes[i])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    kept = min(count, len(batches))
    middles = [(2 * i + 1) * len(batches) // (2 * kept) for i in range(kept)]
    return [[examples[i] for i in batches[middle]] for middle in middles]


class _Sizes:
    """A collator whose examples are sizes and whose batches are costs: number of examples times largest size."""

    def size(self, example: int) -> int:
        return example

    def collate(self, examples: Sequence[int]) -> int:
        return len(examples) * max(*examples, 1)


def work(model: Any, sizes: Sequence[int], batch_size: int, shuffled: bool) -> int:
    """Return the cost of one pass in units of `Modality.size`, including padding unless the model reads packed tokens.

    Args:
        model: the model; only whether it reads packed tokens counts.
        sizes: size of each example.
        batch_size: examples per batch.
        shuffled: whether batches are shuffled, as in training, or cut in order of size, as in scoring.

    >>> work(None, [5, 1, 4, 2], 2, shuffled=False)
    14
    """
    if hasattr(model, "reads_packed") and model.reads_packed(max(sizes, default=0)):
        return sum(sizes)
    task, order = _Sizes(), sorted(sizes)
    if shuffled:
        return sum(minibatches(task, sizes, batch_size, random.Random(0)))
    return sum(task.collate(order[i : i + batch_size]) for i in range(0, len(order), batch_size))


def _asked(config: RunConfig, federation: Federation) -> list[list[str]]:
    """Return the cohort of each round, as the server will sample it."""
    server = federation.server
    ids, rounds = server.transport.clients(), range(1, config.federation.rounds + 1)
    return [sample(ids, config.federation.fraction, config.seed, index) for index in rounds]


def _bytes(
    federation: Federation, asked: Sequence[Sequence[str]], personal: int, once: AskedStatistics
) -> tuple[int | None, int | None, int | None]:
    """Return the bytes that a client sends and receives per round, and those of the whole run; None if not covered."""
    server, clients = federation.server, federation.server.transport.clients()
    if not clients:
        return 0, 0, 0
    up = [server.aggregator.bytes_up(server.adapter, ids) for ids in (clients, *asked)]
    if None in up:
        return None, None, None
    whole, down = adapter_bytes(server.adapter), adapter_bytes(server.download.form(server.adapter))
    rounds = sum(len(ids) * ((bytes_up or 0) + down) for ids, bytes_up in zip(asked, up[1:], strict=True))
    told = adapter_bytes(statistics.blank(server.pair.modality.of("slm"), server.test, once, server.pair.slm))
    return up[0], down, rounds + personal * whole + 2 * told * len(asked[0])


def _plan(config: RunConfig, asked: Sequence[Sequence[str]], personal: Sequence[str]) -> Plan:
    """Return how often a run of this configuration makes each pass; clients send no scores under privacy."""
    rounds, evaluation = len(asked), config.evaluation
    scored = [index for index in range(1, rounds + 1) if evaluation.scores(index, rounds)]
    clients_scored = [index for index in scored if evaluation.scores_clients(index, rounds)]
    if config.federation.privacy:
        clients_scored = []
    return Plan(asked, config.client.epochs, config.server.epochs, scored, clients_scored, personal)


def _passes(config: RunConfig, federation: Federation) -> Passes:
    """Time a few batches of each part."""
    privacy = config.federation.privacy
    private = {client: federation.split.private[client] for client in federation.server.transport.clients()}
    covered = not (private and privacy and privacy.level == "example")
    fits = _fit_seconds(config, federation, private) if covered else None
    return Passes(fits, _distillation_seconds(config, federation), _scoring_seconds(config, federation))


def _fit_seconds(config: RunConfig, federation: Federation, private: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Return the seconds of one epoch by client id, at the speed measured on a sample of all clients' examples."""
    if not private:
        return {}
    say("measuring: a few batches of the clients' training")
    modality, model = federation.server.pair.modality.of("slm"), federation.server.pair.slm
    settings = config.client.model_copy(update={"epochs": 1})
    train = partial(fit, modality, model, settings=settings, seed=0, where="measuring")
    pooled = [x for part in private.values() for x in part]
    unit = _seconds_per_unit(modality, model, pooled, settings.batch_size, train)
    sizes = {client: [modality.size(x) for x in part] for client, part in private.items()}
    return {client: unit * work(model, part, settings.batch_size, shuffled=True) for client, part in sizes.items()}


def _distillation_seconds(config: RunConfig, federation: Federation) -> float:
    """Return the seconds of one epoch over the public examples."""
    pair, public = federation.server.pair, federation.server.public
    if pair.llm is None:
        return 0.0
    say("measuring: a few batches of the distillation")
    settings = config.server.model_copy(update={"epochs": 1})
    train = partial(distil, pair, settings=settings, seed=0, round_index=config.federation.rounds)
    unit = _seconds_per_unit(pair.modality, pair.slm, public, settings.batch_size, train)
    sizes = [pair.modality.size(x) for x in public]
    return unit * work(pair.slm, sizes, settings.batch_size, shuffled=True)


def _scoring_seconds(config: RunConfig, federation: Federation) -> dict[str, float]:
    """Return the seconds of one pass over the test examples by role."""
    say("measuring: a few batches of the scoring")
    server, test, batch_size = federation.server, federation.split.test, config.evaluation.batch_size
    found: dict[str, float] = {}
    for role, model in server.pair.models().items():
        modality = server.pair.modality.of(role)
        sizes = [modality.size(x) for x in test]
        score = partial(evaluate, modality, model, batch_size=batch_size)
        unit = _seconds_per_unit(modality, model, test, batch_size, score)
        found[role] = unit * work(model, sizes, batch_size, shuffled=False)
    return found


def _seconds_per_unit(
    modality: Collator, model: Any, examples: Sequence[Any], batch_size: int, run: Callable[[Sequence[Any]], object]
) -> float:
    """Return the seconds per unit of `work`, measured on a second pass over a few batches, as most passes of a run are.

    Args:
        modality: the modality that tells the size of an example.
        model: the model; only whether it reads packed tokens counts.
        examples: examples to choose the batches from.
        batch_size: examples per batch.
        run: makes one pass over some examples.
    """
    sizes = [modality.size(example) for example in examples]
    largest = [examples[i] for i in sorted(range(len(examples)), key=lambda i: sizes[i])[-batch_size:]]
    run(largest)  # reaches the peak of memory
    timed = [example for batch in chosen_batches(examples, sizes, batch_size, _BATCHES) for example in batch]
    run(timed)  # tokenizes the examples, and compiles kernels
    start = time.perf_counter()
    run(timed)
    seconds = time.perf_counter() - start
    return seconds / work(model, [modality.size(example) for example in timed], batch_size, shuffled=False)


def _uncovered(config: RunConfig, federation: Federation) -> Iterator[str]:
    """Yield what the measurement does not cover, one sentence each."""
    privacy = config.federation.privacy
    if federation.server.gate is not None:
        yield "the gate of the distillation is not covered: in each round, both models label the public examples"
    if not federation.server.transport.clients():
        return
    if privacy and privacy.level == "example":
        yield "the clients' private training (DP-SGD) is not covered, neither its seconds nor its memory"
    if privacy and privacy.level == "client":
        yield "the clients' noise is not covered, neither its seconds nor its memory"
    if config.federation.secure_aggregation.enabled:
        yield "secure aggregation is not covered: its keys, shares and masks take additional seconds and bytes"
