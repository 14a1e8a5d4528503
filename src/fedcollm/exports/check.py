"""Compare an export with its source on the same examples, by the code that scores."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedcollm.exports.footprint import Footprint
from fedcollm.messages import Score
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.task import TextTask
from fedcollm.progress import say
from fedcollm.training.batches import like_sized
from fedcollm.training.fine_tuning import evaluate

#: Examples on which outputs are compared number by number.
COMPARED = 64
#: Share of the examples whose prompts an export may split into other tokens.
MOST_SPLIT_OTHERWISE = 0.02


@dataclass(frozen=True)
class Measured:
    """What was measured of a model.

    Attributes:
        score: the main metric.
        examples_per_second: examples scored per second, in this process.
        bytes: size of the model on disk, a base that goes along included.
        peak_memory_bytes: peak resident memory of a process that does nothing but run the model; None if not measured.
        tokens_per_second: new tokens per second of one text that a language model generates; None if not measured.
        tokens_per_cpu_second: the same per second of a processor's time; None if not measured.
    """

    score: float
    examples_per_second: float
    bytes: int
    peak_memory_bytes: int | None = None
    tokens_per_second: float | None = None
    tokens_per_cpu_second: float | None = None


@dataclass(frozen=True)
class Check:
    """How an export compares with its source.

    Attributes:
        metric: name of the main metric.
        examples: number of examples that both were scored on.
        source: what was measured of the source.
        export: what was measured of the export.
        agreement: share of the examples that count the same for both.
        difference_of: what was compared number by number: log-likelihoods of choices in nats, or logits.
        largest_difference: the largest difference of these.
        compared: number of examples of which they were compared.
        margin: largest loss of the main metric that is allowed; None for any.
        split_otherwise: prompts of these examples that the export's own tokenizer splits into other tokens, which the
            score does not show since it is computed from the source's; None if it has none that was compared.
    """

    metric: str
    examples: int
    source: Measured
    export: Measured
    agreement: float
    difference_of: str
    largest_difference: float
    compared: int
    margin: float | None
    split_otherwise: int | None = None

    @property
    def within_margin(self) -> bool:
        """Whether the export lost no more of the main metric than the margin."""
        return self.margin is None or self.source.score - self.export.score <= self.margin + 1e-9

    @property
    def failures(self) -> list[str]:
        """Return in words why the export can't stand for its source; nothing if it can."""
        lost = self.source.score - self.export.score
        found: list[str] = []
        if not self.within_margin:
            found.append(f"the export lost {lost:.4f} of {self.metric}, more than --margin {self.margin} allows")
        if not math.isfinite(self.largest_difference):
            found.append(f"the export's {self.difference_of} are not all finite numbers")
        if (self.split_otherwise or 0) > MOST_SPLIT_OTHERWISE * self.examples:
            found.append(
                f"the export splits the prompts of {self.split_otherwise} of {self.examples} examples into other tokens"
            )
        return found

    @property
    def passed(self) -> bool:
        """Whether the export can stand for its source."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return the check as plain values."""
        return asdict(self) | {"passed": self.passed}


@dataclass(frozen=True)
class Readings:
    """What a model says of the examples.

    Attributes:
        score: its score.
        seconds: how long that took.
        outputs: log-likelihoods or logits of the first `COMPARED` examples.
        kind: which of these.
        footprint: what the model takes.
        split_otherwise: see `Check`.
    """

    score: Score
    seconds: float
    outputs: list[Tensor]
    kind: str
    footprint: Footprint = Footprint(0)
    split_otherwise: int | None = None


def read(modality: Modality, model: nn.Module, examples: Sequence[Any], batch_size: int, what: str) -> Readings:
    """Return what a model says of examples.

    Args:
        modality: scores the model.
        model: the model.
        examples: at least one example.
        batch_size: examples per batch.
        what: name of the loop, for progress.
    """
    start = time.perf_counter()
    score = evaluate(modality, model, examples, batch_size, what)
    seconds = time.perf_counter() - start
    some = examples[:COMPARED]
    outputs: list[Tensor] = []
    with torch.inference_mode():
        for batch in like_sized(modality, some, batch_size):
            outputs += _outputs(modality, model, [some[i] for i in batch])
    kind = "log-likelihoods of choices" if _has_choices(modality, examples) else "logits"
    return Readings(score, seconds, outputs, kind)


def _outputs(modality: Modality, model: nn.Module, examples: Sequence[Any]) -> list[Tensor]:
    if _has_choices(modality, examples) and isinstance(modality, TextTask):
        return modality.likelihoods(model, examples)
    return [modality.logits(model, modality.collate(examples)).cpu()]


def _has_choices(modality: Modality, examples: Sequence[Any]) -> bool:
    return isinstance(modality, TextTask) and not any(example.has_free_label for example in examples)


def compared(pair: tuple[Readings, Readings], count: int, margin: float | None) -> Check:
    """Return how an export compares with its source.

    Args:
        pair: what the source and the export said.
        count: number of examples.
        margin: largest loss of the main metric that is allowed; None for any.
    """
    one, two = pair
    same = [value == two.score.outcomes.get(i) for i, value in one.score.outcomes.items()]
    gaps = [float((a - b).abs().max()) for a, b in zip(one.outputs, two.outputs, strict=True)]
    return Check(
        metric=next(iter(one.score.sums)),
        examples=count,
        source=_measured(one, count),
        export=_measured(two, count),
        agreement=sum(same) / len(same) if same else math.nan,
        difference_of=one.kind,
        largest_difference=math.nan if any(map(math.isnan, gaps)) else max(gaps, default=0.0),
        compared=min(count, COMPARED),
        margin=margin,
        split_otherwise=two.split_otherwise,
    )


def _measured(readings: Readings, count: int) -> Measured:
    taken = readings.footprint
    return Measured(
        score=readings.score.value,
        examples_per_second=count / readings.seconds,
        bytes=taken.bytes,
        peak_memory_bytes=taken.peak_memory_bytes,
        tokens_per_second=taken.tokens_per_second,
        tokens_per_cpu_second=taken.tokens_per_cpu_second,
    )


def tell(check: Check) -> None:
    """Say how an export compares with its source."""
    say(
        f"{check.metric} {check.source.score:.4f} before, {check.export.score:.4f} exported, on {check.examples} "
        f"examples; largest difference of {check.difference_of}: {check.largest_difference:.3g}"
    )


def in_words(check: Check | None) -> list[str]:
    """Return the paragraphs of a model card on how an export compares with its source."""
    if check is None:
        return ["## Compared with its source", "This export was not compared with its source on examples."]
    rows = [
        f"| {name} | {one.score:.4f} | {one.bytes / 1e6:,.1f} MB | {_speed(one)} | {_memory(one)} |"
        for name, one in (("source", check.source), ("this export", check.export))
    ]
    limit = "no margin was set" if check.margin is None else f"the margin is a loss of {check.margin:g}"
    verdict = "within it" if check.within_margin else "**which it exceeds**"
    tokens = (
        []
        if check.split_otherwise is None
        else [f"Its own tokenizer splits the prompts of {check.split_otherwise} of these examples into other tokens."]
    )
    return [
        "## Compared with its source",
        "\n".join(
            [f"| | `{check.metric}` | size | new tokens per second | peak memory |", "|---|---|---|---|---|", *rows]
        ),
        f"On {check.examples:,} test examples, of which {100 * check.agreement:.1f} % count the same for both; "
        f"{limit}{'' if check.margin is None else ', ' + verdict}. The largest difference of {check.difference_of} on "
        f"{check.compared} examples is {check.largest_difference:.3g}. Memory and speed are those of one process "
        "on one machine, which may have been busy.",
        *tokens,
    ]


def _speed(one: Measured) -> str:
    return "–" if one.tokens_per_second is None else f"{one.tokens_per_second:.1f}"


def _memory(one: Measured) -> str:
    return "–" if one.peak_memory_bytes is None else f"{one.peak_memory_bytes / 1e6:,.0f} MB"
