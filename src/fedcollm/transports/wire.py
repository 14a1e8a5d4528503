"""Messages as bytes, and back: the only format that crosses a network.

A message is one safetensors file in memory: its tensors are the message's tensors (or byte strings), and its metadata
hold the rest as JSON. Nothing in it can be executed, and everything in it is checked before it is used.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedcollm.errors import RefusalError
from fedcollm.messages import (
    PROTOCOL_VERSION,
    Answer,
    ClientUpdate,
    Failure,
    PhaseAnswer,
    PhaseRequest,
    Request,
    Score,
    Session,
)
from fedcollm.messages import TrainRequest as Train

#: The one key of the metadata: safetensors writes several in an order of its own, and the same message would not be the
#: same bytes twice. Its value is the protocol's version, a line break, and a header as JSON.
_METADATA = "fedcollm"


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _TrainHeader(_Header):
    kind: Literal["train"] = "train"
    round_index: int
    evaluate: bool
    session: Session | None
    run: str
    keep: bool = False


class _PhaseHeader(_Header):
    kind: Literal["phase"] = "phase"
    phase: str
    nonce: str


class _UpdateHeader(_Header):
    kind: Literal["update"] = "update"
    client: str
    round_index: int
    examples: int | None
    loss: float | None
    score: tuple[dict[str, float], int] | None
    seconds: dict[str, float]


class _AnswerHeader(_Header):
    kind: Literal["answer"] = "answer"
    client: str
    nonce: str


class _FailureHeader(_Header):
    kind: Literal["failure"] = "failure"
    client: str
    reason: str


_HEADERS: TypeAdapter[Any] = TypeAdapter(_TrainHeader | _PhaseHeader | _UpdateHeader | _AnswerHeader | _FailureHeader)


def longest_message(adapter_bytes: int = 0) -> int:
    """Bytes that a message of a federation may have at most: masked words can be wider than an adapter's values."""
    return 2 * adapter_bytes + 16 * 2**20


def encode(message: Request | Answer) -> bytes:
    """One message as bytes; a score travels without its confusion table and outcomes."""
    match message:
        case Train(round_index, adapter, evaluate, session, run, keep):
            header = _TrainHeader(round_index=round_index, evaluate=evaluate, session=session, run=run, keep=keep)
            tensors = adapter
        case PhaseRequest(phase, nonce, items):
            header, tensors = _PhaseHeader(phase=phase, nonce=nonce), _tensors(items)
        case ClientUpdate(client, round_index, adapter, examples, loss, score, seconds):
            header = _UpdateHeader(
                client=client,
                round_index=round_index,
                examples=examples,
                loss=loss,
                score=(dict(score.sums), score.count) if score else None,
                seconds=dict(seconds),
            )
            tensors = adapter
        case PhaseAnswer(client, nonce, items):
            header, tensors = _AnswerHeader(client=client, nonce=nonce), _tensors(items)
        case Failure(client, reason):
            header, tensors = _FailureHeader(client=client, reason=reason), {}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save(contiguous, {_METADATA: f"{PROTOCOL_VERSION}\n{header.model_dump_json()}"})


def decode(data: bytes, limit_bytes: int) -> Request | Answer:
    """Inverse of `encode`.

    Args:
        data: from a party that may be faulty or hostile.
        limit_bytes: the longest message to look at.

    Raises:
        RefusalError: too long, truncated, not a message, or a message of another version of the protocol.
    """
    if len(data) > limit_bytes:
        raise RefusalError(f"a message of {len(data)} bytes, longer than the {limit_bytes} allowed")
    try:
        length = int.from_bytes(data[:8], "little")
        version, _, text = json.loads(data[8 : 8 + length])["__metadata__"][_METADATA].partition("\n")
        if int(version) != PROTOCOL_VERSION:
            raise RefusalError(
                f"a message of protocol version {int(version)}, and this is version {PROTOCOL_VERSION}: "
                "server and clients need the same version of fedcollm"
            )
        header, tensors = _HEADERS.validate_json(text), load(data)
    except (SafetensorError, ValidationError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RefusalError(f"not a message of this protocol ({type(error).__name__})") from error
    return _message(header, tensors)


def _message(header: _Header, tensors: Mapping[str, Tensor]) -> Request | Answer:
    match header:
        case _TrainHeader():
            adapter, session = dict(tensors), header.session
            return Train(header.round_index, adapter, header.evaluate, session, header.run, header.keep)
        case _PhaseHeader():
            return PhaseRequest(header.phase, header.nonce, _items(tensors))
        case _UpdateHeader():
            score = Score(*header.score) if header.score else None
            adapter, seconds = dict(tensors), header.seconds
            return ClientUpdate(
                header.client, header.round_index, adapter, header.examples, header.loss, score, seconds
            )
        case _AnswerHeader():
            return PhaseAnswer(header.client, header.nonce, _items(tensors))
        case _FailureHeader():
            return Failure(header.client, header.reason)
    raise AssertionError(header)


def _tensors(items: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Byte strings as [n] uint8 tensors."""
    return {name: torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.empty(0, dtype=torch.uint8)
            for name, value in items.items()}  # fmt: skip


def _items(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Inverse of `_tensors`.

    Raises:
        RefusalError: a tensor of another kind.
    """
    if odd := [name for name, tensor in tensors.items() if tensor.dtype != torch.uint8 or tensor.dim() != 1]:
        raise RefusalError(f"item {odd[0]} is not a string of bytes")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
