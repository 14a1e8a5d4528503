"""The values that travel between server and clients, and the record of a round."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

#: Trainable tensors by name: the only weights that ever travel.
Adapter = dict[str, Tensor]


def adapter_bytes(adapter: Adapter) -> int:
    """Size of an adapter's values in bytes, as they travel."""
    return sum(tensor.numel() * tensor.element_size() for tensor in adapter.values())


@dataclass(frozen=True)
class Score:
    """Sums of metrics over examples, so that scores of parts merge exactly.

    Attributes:
        sums: metric name to its sum over examples; the first one is the task's main metric.
        count: number of examples.
        confusion: (true label, predicted label) to number of examples; empty if it means nothing.
    """

    sums: Mapping[str, float]
    count: int
    confusion: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """Mean of the main metric over examples; NaN if there were none."""
        return self.mean(next(iter(self.sums))) if self.sums else float("nan")

    def mean(self, metric: str) -> float:
        """Mean of one metric over examples."""
        return self.sums[metric] / self.count if self.count else float("nan")

    def __add__(self, other: "Score") -> "Score":
        names = self.sums or other.sums
        sums = {name: self.sums.get(name, 0.0) + other.sums.get(name, 0.0) for name in names}
        confusion = dict(Counter(self.confusion) + Counter(other.confusion))
        return Score(sums, self.count + other.count, confusion)


@dataclass(frozen=True)
class TrainRequest:
    """What the server sends to a client: tune this adapter in this round.

    Attributes:
        round_index: 1 for the first round of training.
        adapter: θ, the global adapter of the SLM.
        evaluate: whether the client scores its tuned SLM on its test examples.
    """

    round_index: int
    adapter: Adapter
    evaluate: bool = True


@dataclass(frozen=True)
class ClientUpdate:
    """What a client sends back: its tuned adapter and sums, never examples.

    Attributes:
        client: the client's id.
        round_index: the round that it answers.
        adapter: θ_k after local fine-tuning.
        examples: n_k, the number of examples that it was tuned on.
        loss: mean training loss of the last local epoch.
        score: the tuned SLM's score on the client's test examples, where asked for.
        seconds: time spent by part, `clients` (tuning) and `evaluation`.
    """

    client: str
    round_index: int
    adapter: Adapter
    examples: int
    loss: float
    score: Score | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundRecord:
    """One line of `rounds.jsonl`; round 0 is before any training.

    Attributes:
        round: index of the round.
        scores: main metric by role: `slm` (global SLM), `llm`, `clients` (mean over participants
            of their SLM after local tuning); roles that were not scored are absent.
        losses: `client` (mean over examples), `slm`, `llm` (CE parts), `kl` of the server.
        participants: ids of the clients whose updates are in the aggregate.
        bytes_up: adapter bytes that one client sent in this round.
        bytes_down: adapter bytes that one client received in this round.
        seconds: wall-clock by part: `clients`, `distillation`, `evaluation`.
        peak_memory_bytes: highest resident memory of the process so far.
    """

    round: int
    scores: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)
    participants: tuple[str, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "RoundRecord":
        """Inverse of `to_json`."""
        values: dict[str, Any] = json.loads(line)
        return cls(**{**values, "participants": tuple(values["participants"])})
