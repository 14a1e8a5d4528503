"""The values that travel between server and clients, and the record of a round."""

import dataclasses
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fedcollm.errors import RefusalError

if TYPE_CHECKING:
    from torch import Tensor  # imported where it is used: who only reads records need not wait for torch

#: Version of everything that travels between parties; two versions refuse each other.
PROTOCOL_VERSION = 2

#: Trainable tensors by name: the only weights that ever travel.
Adapter = dict[str, "Tensor"]


def adapter_bytes(adapter: Adapter) -> int:
    """Size of an adapter's values in bytes, as they travel."""
    return sum(tensor.numel() * tensor.element_size() for tensor in adapter.values())


def norm(tensor: "Tensor") -> float:
    """L2 norm, summed in float64: of float32 values, finite if and only if they are."""
    import torch

    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def misfit(adapter: Mapping[str, "Tensor"], expected: Mapping[str, "Tensor"]) -> str | None:
    """In what way an adapter from elsewhere differs from the expected form; None if in none."""
    if odd := sorted(adapter.keys() ^ expected.keys()):
        return f"tensor {odd[0]} is {'missing' if odd[0] in expected else 'unknown'}"
    for name, tensor in adapter.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            here, there = ([tuple(t.shape), str(t.dtype)] for t in (tensor, expected[name]))
            return f"tensor {name} is {here}, not {there}"
        if not math.isfinite(norm(tensor)):
            return f"tensor {name} is not finite"
    return None


def readable(reason: str) -> str:
    r"""What another party says, for records and terminals: at most 500 characters, none of which does anything there.

    >>> readable("no\x1b[2J\nspace")
    'no [2J space'
    """
    return "".join(sign if sign.isprintable() else " " for sign in reason[:500])


@dataclass(frozen=True)
class Score:
    """Sums of metrics over examples, so that scores of parts merge exactly.

    Attributes:
        sums: metric name to its sum over examples; the first one is the task's main metric.
        count: number of examples.
        confusion: (true label, predicted label) to number of examples; empty if it means nothing.
        outcomes: example id to its value of the main metric, for paired statistics; never sent by a client.
    """

    sums: Mapping[str, float]
    count: int
    confusion: Mapping[tuple[str, str], int] = field(default_factory=dict)
    outcomes: Mapping[str, float] = field(default_factory=dict, repr=False)

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
        return Score(sums, self.count + other.count, confusion, {**self.outcomes, **other.outcomes})


def payload_digest(adapter: Adapter, settings: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal, of an adapter's names, shapes, dtypes and values, and of the settings.

    Args:
        adapter: any tensors by name.
        settings: plain values, as the `to_wire` of what they belong to returns them.
    """
    import torch

    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(adapter):
        tensor = adapter[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def default_threshold(invited: int) -> int:
    """The smallest t > 2n/3.

    >>> [default_threshold(n) for n in (3, 4, 6, 10)]
    [3, 3, 5, 7]
    """
    return 2 * invited // 3 + 1


@dataclass(frozen=True)
class Session:
    """What every message of one round's protocol is bound to.

    Attributes:
        run: the run's identity.
        round_index: of the round.
        nonce: fresh for every attempt at the round, in hexadecimal.
        invited: ids of the clients asked, sorted.
        threshold: t.
        payload: `payload_digest` of what every client is to train: one that got another θ than the others would
            give its update away as the only one that is not zero (Pasquini et al., arXiv 2111.07380).
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
        """A new attempt at a round."""
        clients = tuple(sorted(invited))
        threshold = default_threshold(len(clients)) if threshold is None else threshold
        return cls(run, round_index, os.urandom(16).hex(), clients, threshold, payload)

    @cached_property
    def context(self) -> bytes:
        """SHA-256 of the whole session; part of every signature, key derivation and ciphertext."""
        fields = [self.run, self.round_index, self.nonce, list(self.invited), self.threshold, self.payload]
        return hashlib.sha256(f"fedcollm secure aggregation {PROTOCOL_VERSION}{json.dumps(fields)}".encode()).digest()

    def check(self) -> None:
        """Refuse a session that would not protect its clients.

        Raises:
            RefusalError: fewer than three clients, or t ≤ 2n/3, or t > n, or a client twice.
        """
        count = len(self.invited)
        if list(self.invited) != sorted(set(self.invited)):
            raise RefusalError("the list of invited clients is not sorted, or names a client twice")
        if count < 3:
            raise RefusalError(
                f"{count} clients: of a sum of two, each learns the other's part, so at least 3 are needed"
            )
        if not default_threshold(count) <= self.threshold <= count:
            raise RefusalError(
                f"threshold {self.threshold} of {count} clients: it must be from {default_threshold(count)} to {count}"
            )


@dataclass(frozen=True)
class TrainRequest:
    """What the server sends to a client: tune this adapter in this round.

    Attributes:
        round_index: 1 for the first round of training.
        adapter: θ, the global adapter of the SLM.
        evaluate: whether the client scores its tuned SLM on its test examples.
        session: of secure aggregation: the client keeps its update, and answers with public keys.
        run: the run's identity; a client of another run refuses.
        keep: after the last round: the client keeps the tuned adapter, and answers without it.
    """

    round_index: int
    adapter: Adapter
    evaluate: bool = True
    session: Session | None = None
    run: str = ""
    keep: bool = False


@dataclass(frozen=True)
class ClientUpdate:
    """What a client sends back: its tuned adapter and sums, never examples.

    Attributes:
        client: the client's id.
        round_index: the round that it answers.
        adapter: θ_k after local fine-tuning, in the form agreed; empty if the client keeps it.
        examples: n_k, the number of examples that it was tuned on; None under privacy, as all that follows.
        loss: mean training loss of the last local epoch.
        score: the tuned SLM's score on the client's test examples, where asked for.
        seconds: time spent by part, `clients` (tuning) and `evaluation`; empty under privacy.
    """

    client: str
    round_index: int
    adapter: Adapter
    examples: int | None = None
    loss: float | None = None
    score: Score | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PhaseRequest:
    """What the server sends to a client in a later phase of secure aggregation.

    Attributes:
        phase: `share`, `mask`, `confirm` or `unmask`.
        nonce: of the session.
        items: client id to bytes; their meaning depends on the phase.
    """

    phase: str
    nonce: str
    items: Mapping[str, bytes]


@dataclass(frozen=True)
class PhaseAnswer:
    """What a client sends back in any phase of secure aggregation.

    Attributes:
        client: the client's id.
        nonce: of the session.
        items: name or client id to bytes; their meaning depends on the phase.
    """

    client: str
    nonce: str
    items: Mapping[str, bytes]


@dataclass(frozen=True)
class Failure:
    """What a transport yields for a client that refused, or that it could not reach in time.

    Attributes:
        client: the client's id.
        reason: in words.
    """

    client: str
    reason: str


Request = TrainRequest | PhaseRequest
Answer = ClientUpdate | PhaseAnswer | Failure


@dataclass(frozen=True)
class RoundRecord:
    """One line of `rounds.jsonl`; round 0 is before any training.

    Attributes:
        round: index of the round.
        scores: main metric by role: `slm` (global SLM), `llm`, `clients` (mean over participants
            of their SLM after local tuning), `personal` (the same of the SLMs that clients keep, after the
            last round); roles that were not scored are absent.
        losses: `client` (mean over examples), `slm`, `llm` (CE parts), `kl` of the server.
        participants: ids of the clients whose updates are in the aggregate.
        bytes_up: bytes that one client sent in this round: its adapter, or its part of secure aggregation.
        bytes_down: bytes that one client received in this round; the final θ, which clients tune to keep, comes on top.
        seconds: wall-clock by part: `clients`, `distillation`, `evaluation`.
        peak_memory_bytes: highest resident memory of the process so far.
        lost: client id to when it was lost, or why an answer of it was refused.
        epsilon: ε spent so far, at the δ of the configuration; None without privacy.
    """

    round: int
    scores: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)
    participants: tuple[str, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    lost: Mapping[str, str] = field(default_factory=dict)
    epsilon: float | None = None

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "RoundRecord":
        """Inverse of `to_json`."""
        values: dict[str, Any] = json.loads(line)
        return cls(**{**values, "participants": tuple(values["participants"])})
