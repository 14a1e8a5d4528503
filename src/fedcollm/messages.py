"""The values that travel between server and clients, and the record of a round."""

import dataclasses
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedcollm.errors import RefusalError

if TYPE_CHECKING:
    from torch import Tensor  # functions that need torch import it, so that reading records does not wait for it

#: Version of the messages between parties. Parties with different versions refuse each other.
PROTOCOL_VERSION = 4

#: What no honest client exceeds: a larger number would outweigh all others. Nothing shows that a smaller one is true.
MOST_EXAMPLES, LARGEST_LOSS, MOST_SECONDS = 2**20, 1e6, 1e9

#: Trainable tensors by name, the only weights that ever travel.
Adapter = dict[str, "Tensor"]


def adapter_bytes(adapter: Adapter) -> int:
    """Return the size of an adapter's values in bytes, as they are sent."""
    return sum(tensor.numel() * tensor.element_size() for tensor in adapter.values())


def norm(tensor: "Tensor") -> float:
    """Return the L2 norm, summed in float64, so that for float32 it is finite exactly if every value is finite."""
    import torch

    linalg: Any = torch.linalg
    return float(linalg.vector_norm(tensor, dtype=torch.float64))


def distance(one: Adapter, other: Adapter) -> float:
    """Return the L2 norm of the difference of two adapters with the same names and shapes, as precise as float32."""
    import torch

    norms = [torch.dist(tensor, other[name]) for name, tensor in one.items()]
    return norm(torch.stack(norms)) if norms else 0.0


def all_finite(tensors: Iterable["Tensor"]) -> bool:
    """Return whether every value is finite."""
    import torch

    linalg: Any = torch.linalg
    kept = [tensor.detach() for tensor in tensors]
    norms = torch.stack([linalg.vector_norm(tensor) for tensor in kept]) if kept else torch.zeros(0)
    if math.isfinite(float(norms.sum())):
        return True
    return all(bool(tensor.isfinite().all()) for tensor in kept)  # the squares of finite values can overflow


def misfit(adapter: Mapping[str, "Tensor"], expected: Mapping[str, "Tensor"]) -> str | None:
    """Return how a received adapter differs from the expected names, shapes and dtypes, or None if it is valid.

    An adapter with a NaN or infinite value is not valid either.
    """
    reason = misshapen(adapter, expected)
    return reason or (None if all_finite(adapter.values()) else f"tensor {not_finite(adapter)} is not finite")


def not_finite(adapter: Mapping[str, "Tensor"]) -> str | None:
    """Return the name of a tensor that has a NaN or infinite value; None if there is none."""
    return next((name for name, tensor in adapter.items() if not tensor.isfinite().all()), None)


def misshapen(adapter: Mapping[str, "Tensor"], expected: Mapping[str, "Tensor"]) -> str | None:
    """Return how an adapter differs from the expected names, shapes and dtypes, or None if it does not."""
    if odd := sorted(adapter.keys() ^ expected.keys()):
        return f"tensor {odd[0]} is {'missing' if odd[0] in expected else 'unknown'}"
    for name, tensor in adapter.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            here, there = ([tuple(t.shape), str(t.dtype)] for t in (tensor, expected[name]))
            return f"tensor {name} is {here}, not {there}"
    return None


def readable(reason: str) -> str:
    r"""Return another party's text as it is safe to record and print: at most 500 characters, all of them printable.

    >>> readable("no\x1b[2J\nspace")
    'no [2J space'
    """
    return "".join(sign if sign.isprintable() else " " for sign in reason[:500])


@dataclass(frozen=True)
class Score:
    """Metrics as sums over examples, so that the scores of several parts add up exactly.

    Attributes:
        sums: metric name to its sum over examples; the first one is the task's main metric.
        count: number of examples.
        confusion: (true label, predicted label) to number of examples; empty where the task has no classes.
        outcomes: example id to its value of the main metric, for paired statistics; a client never sends it.
        counts: metric name to what its sum is divided by, such as the number of words of the references; a metric
            without an entry is a mean over examples. Zero if nothing of a part counts for the metric.
    """

    sums: Mapping[str, float]
    count: int
    confusion: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    outcomes: Mapping[str, float] = field(default_factory=dict[str, float], repr=False)
    counts: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def value(self) -> float:
        """Mean of the main metric over examples, or over its own count; NaN if there are none."""
        return self.mean(next(iter(self.sums))) if self.sums else float("nan")

    def mean(self, metric: str) -> float:
        """Return the mean of one metric over examples, or over its own count; NaN if there are none."""
        count = self.counts.get(metric, self.count)
        return self.sums[metric] / count if count else float("nan")

    def _count(self, metric: str) -> int:
        return self.counts.get(metric, self.count if metric in self.sums else 0)

    def to_wire(self) -> tuple[dict[str, float], int] | tuple[dict[str, float], int, dict[str, int]]:
        """Return the sums, the number of examples and, if there are any, the metrics' own counts."""
        parts = dict(self.sums), self.count
        return (*parts, dict(self.counts)) if self.counts else parts

    @classmethod
    def from_wire(cls, parts: Sequence[Any]) -> "Score":
        """Return the score that `to_wire` took apart."""
        sums, count, *counts = parts
        return cls(sums, count, counts=counts[0] if counts else {})

    def __add__(self, other: "Score") -> "Score":
        """Return the score of both parts together.

        The main metric is the first one that both have. A metric that only one part has is a mean over that part.
        """
        if not self.sums or not other.sums:
            return self._joined(other, self.sums or other.sums, {**self.counts, **other.counts})
        shared = [name for name in self.sums if name in other.sums]
        single = {name: None for one in (self, other) for name in one.sums if name not in shared}
        counted = dict.fromkeys([*self.counts, *other.counts, *single])
        return self._joined(other, [*shared, *single], counted)

    def _joined(self, other: "Score", names: Iterable[str], counted: Iterable[str]) -> "Score":
        """Return the score of both parts together, with a count of its own for each metric in `counted`."""
        sums = {name: self.sums.get(name, 0.0) + other.sums.get(name, 0.0) for name in names}
        confusion = dict(Counter(self.confusion) + Counter(other.confusion))
        counts = {name: self._count(name) + other._count(name) for name in counted}
        return Score(sums, self.count + other.count, confusion, {**self.outcomes, **other.outcomes}, counts)


def payload_digest(adapter: Adapter, settings: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal, of an adapter (names, shapes, dtypes, values) and of settings.

    Args:
        adapter: tensors by name.
        settings: plain values, as the `to_wire` methods return them.
    """
    import torch

    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(adapter):
        tensor = adapter[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def default_threshold(invited: int) -> int:
    """Return the smallest integer t > 2n/3, for n invited clients.

    >>> [default_threshold(n) for n in (3, 4, 6, 10)]
    [3, 3, 5, 7]
    """
    return 2 * invited // 3 + 1


@dataclass(frozen=True)
class Session:
    """One attempt at a round of secure aggregation. Every message of the attempt is bound to it.

    Attributes:
        run: name of the run.
        round_index: index of the round.
        nonce: random, in hexadecimal, fresh for every attempt.
        invited: ids of the clients that take part, sorted.
        threshold: t, the number of clients needed to open the sum.
        payload: `payload_digest` of what every client trains. A server could otherwise send one client a different θ
            and read its update as the only nonzero one (Pasquini et al., arXiv 2111.07380).
    """

    run: str
    round_index: int
    nonce: str
    invited: tuple[str, ...]
    threshold: int
    payload: str = ""

    @classmethod
    def fresh(
        cls, run: str, round_index: int, invited: Iterable[str], threshold: int | None = None, payload: str = ""
    ) -> "Session":
        """Return a session for a new attempt at a round; the default threshold is `default_threshold`."""
        clients = tuple(sorted(invited))
        threshold = default_threshold(len(clients)) if threshold is None else threshold
        return cls(run, round_index, os.urandom(16).hex(), clients, threshold, payload)

    @cached_property
    def context(self) -> bytes:
        """SHA-256 of the whole session, which is part of every signature, key derivation and ciphertext."""
        fields = [self.run, self.round_index, self.nonce, list(self.invited), self.threshold, self.payload]
        return hashlib.sha256(f"fedcollm secure aggregation {PROTOCOL_VERSION}{json.dumps(fields)}".encode()).digest()

    def check(self) -> None:
        """Check that the session protects its clients.

        Raises:
            RefusalError: there are fewer than three clients, t ≤ 2n/3, t > n, or a client is listed twice.
        """
        count = len(self.invited)
        if list(self.invited) != sorted(set(self.invited)):
            raise RefusalError("the list of invited clients is not sorted, or names a client twice")
        if count < 3:
            raise RefusalError(f"{count} clients: at least 3 are needed, or each could infer the other's part")
        least = default_threshold(count)
        if not least <= self.threshold <= count:
            raise RefusalError(f"threshold {self.threshold} of {count} clients: it must be from {least} to {count}")


@dataclass(frozen=True)
class TrainRequest:
    """The server's request to a client: fine-tune this adapter in this round.

    Attributes:
        round_index: index of the round, 1 for the first round of training.
        adapter: θ, the global adapter of the SLM; or zeros that ask for statistics (`federation/statistics.py`).
        evaluate: whether the client scores its tuned SLM on its test examples.
        session: the session of secure aggregation; with one, the client holds its update back and answers with
            public keys.
        run: name of the run; a client of another run refuses.
        keep: True after the last round, where the client keeps the tuned adapter and answers without it.
    """

    round_index: int
    adapter: Adapter
    evaluate: bool = True
    session: Session | None = None
    run: str = ""
    keep: bool = False

    @cached_property
    def finite(self) -> bool:
        """Whether all values of the adapter are finite, found out once for all clients of this process."""
        return all_finite(self.adapter.values())

    @cached_property
    def extent(self) -> Mapping[str, tuple[float, float]]:
        """The largest absolute value and the L2 norm of each tensor, found out once for all clients of this process."""
        return {name: (float(t.abs().max()) if t.numel() else 0.0, norm(t)) for name, t in self.adapter.items()}

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of θ, in hexadecimal."""
        return payload_digest(self.adapter, {})


@dataclass(frozen=True)
class ClientUpdate:
    """A client's answer: its tuned adapter and sums, never examples.

    Under differential privacy, and after a request to keep the adapter, `examples`, `loss` and `score` are None, and
    `seconds` is empty. A training that failed is answered with θ itself, a loss of 0, and all other fields as always.

    Attributes:
        client: the client's id.
        round_index: index of the round that it answers.
        adapter: θ_k after local fine-tuning, in the upload format; empty if the client keeps it.
        examples: n_k, the number of examples that it was tuned on.
        loss: mean training loss of the last local epoch.
        score: the tuned SLM's score on the client's test examples, if the request asked for it.
        seconds: time spent on `clients` (fine-tuning) and `evaluation`.
    """

    client: str
    round_index: int
    adapter: Adapter
    examples: int | None = None
    loss: float | None = None
    score: Score | None = None
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class PhaseRequest:
    """The server's request to a client in a later phase of secure aggregation.

    Attributes:
        phase: `share`, `mask`, `reveal`, `confirm` or `unmask`.
        nonce: the session's nonce.
        items: client id to bytes, whose meaning depends on the phase.
    """

    phase: str
    nonce: str
    items: Mapping[str, bytes]


@dataclass(frozen=True)
class FinishRequest:
    """The server's last message to a client: the run is finished. The client keeps the adapter and stops.

    Attributes:
        round_index: index of the last round.
        adapter: the final θ; empty in a run that trains nothing.
        run: name of the run; a client of another run refuses.
    """

    round_index: int
    adapter: Adapter
    run: str


@dataclass(frozen=True)
class PhaseAnswer:
    """A client's answer in any phase of secure aggregation.

    Attributes:
        client: the client's id.
        nonce: the session's nonce.
        items: name or client id to bytes, whose meaning depends on the phase.
    """

    client: str
    nonce: str
    items: Mapping[str, bytes]


@dataclass(frozen=True)
class Failure:
    """What a transport yields for a client that refused or did not answer in time, with the reason in words."""

    client: str
    reason: str


Request = TrainRequest | PhaseRequest
Answer = ClientUpdate | PhaseAnswer | Failure


@dataclass(frozen=True)
class RoundRecord:
    """The record of one round, a line of `rounds.jsonl`. Round 0 is the state before any training.

    Attributes:
        round: index of the round.
        scores: main metric by role: `slm` (the global SLM), `llm`, `clients` (mean over participants of their SLMs
            after local fine-tuning), `personal` (mean of the SLMs that clients keep after the last round), `control`
            (of a run that trains nothing). Roles that were not scored are absent.
        losses: `client` (mean over examples) and the server's `slm`, `llm` (cross-entropy parts) and `kl`.
        participants: ids of the clients whose updates were aggregated.
        bytes_up: bytes that one client sent in this round: its adapter, or its messages of secure aggregation.
        bytes_down: bytes that one client received in this round, without the final θ that `client.personal` sends.
        seconds: wall-clock seconds by part: `clients`, `distillation` and `evaluation`.
        peak_memory_bytes: peak resident memory of the process so far.
        lost: client id to the phase in which the client was lost, or to the reason why its answer was rejected.
        epsilon: ε spent so far at the configured δ; None without differential privacy.
        notes: sentences that a reader of the results should know, which the report shows.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    round: int
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    losses: Mapping[str, float] = field(default_factory=dict[str, float])
    participants: tuple[str, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    peak_memory_bytes: int = 0
    lost: Mapping[str, str] = field(default_factory=dict[str, str])
    epsilon: float | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "RoundRecord":
        """Return the record that `to_json` wrote.

        Raises:
            ValueError: the line is something else; unknown names count too, so that nothing of a newer version is lost.
        """
        try:
            return _RECORD.validate_python(json.loads(line))
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'the line'}: {first['msg']}") from None


_RECORD = TypeAdapter(RoundRecord)
