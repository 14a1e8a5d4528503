"""Messages as bytes, and back: the only format that crosses a network.

A message is one safetensors file in memory. Its tensors are the message's tensors or byte strings, and its metadata
holds the other fields as JSON. Nothing in a message can be executed, and every field is checked before it is used.
The two sides must speak the same version of the protocol: each refuses a message of another version, and its operator
is told both versions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from safetensors.torch import load, save
from torch import Tensor

from fedcollm.errors import RefusalError
from fedcollm.messages import (
    PROTOCOL_VERSION,
    Answer,
    ClientUpdate,
    Failure,
    FinishRequest,
    PhaseAnswer,
    PhaseRequest,
    Request,
    Score,
    Session,
)
from fedcollm.messages import TrainRequest as Train

#: The only key of the metadata: safetensors writes several keys in no fixed order, and one message would not always be
#: the same bytes. Its value is the version of the protocol, a line break, and a header as JSON.
_METADATA = "fedcollm"

#: The head of an update is filled up with spaces to a multiple of so many characters. Its length would otherwise tell
#: who watches the network how many digits its numbers have: a loss of 0.0 is that of a training that failed.
_STEP = 1024

#: What a head can hold at most: a message whose parts are all tiny would otherwise take minutes to read.
_LONGEST_HEAD, _MOST_TENSORS, _LONGEST_NAME = 8 * 2**20, 20_000, 500

#: Numbers that every program can hold: JSON itself knows no bounds.
_Integer = Annotated[int, Field(ge=-(2**53), le=2**53)]
_Number = Annotated[float, Field(ge=-1e300, le=1e300)]
_Round = Annotated[int, Field(ge=0, le=2**31)]
_Name = Annotated[str, Field(max_length=100)]
_Label = Annotated[str, Field(max_length=1000)]  # such as the name of a run, a client, or a digest
_Labels = Annotated[tuple[_Label, ...], Field(max_length=10_000)]
_Sums = Annotated[dict[_Name, _Number], Field(max_length=100)]
_Counts = Annotated[dict[_Name, _Integer], Field(max_length=100)]


class _Form(BaseModel):
    """Part of a header. The names of the fields are the wire format: to change one, raise PROTOCOL_VERSION."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _SessionForm(_Form):
    run: _Label
    round_index: _Round
    nonce: _Label
    invited: _Labels
    threshold: _Integer
    payload: _Label


class _TrainHeader(_Form):
    kind: Literal["train"] = "train"
    round_index: _Round
    evaluate: bool
    session: _SessionForm | None
    run: _Label
    keep: bool = False


class _FinishHeader(_Form):
    kind: Literal["finish"] = "finish"
    round_index: _Round
    run: _Label


class _PhaseHeader(_Form):
    kind: Literal["phase"] = "phase"
    phase: _Label
    nonce: _Label


class _UpdateHeader(_Form):
    kind: Literal["update"] = "update"
    client: _Label
    round_index: _Round
    examples: _Integer | None
    loss: _Number | None
    score: tuple[_Sums, _Integer] | tuple[_Sums, _Integer, _Counts] | None
    seconds: _Sums


class _AnswerHeader(_Form):
    kind: Literal["answer"] = "answer"
    client: _Label
    nonce: _Label


class _FailureHeader(_Form):
    kind: Literal["failure"] = "failure"
    client: _Label
    reason: Annotated[str, Field(max_length=10_000)]


_Header = _TrainHeader | _FinishHeader | _PhaseHeader | _UpdateHeader | _AnswerHeader | _FailureHeader
_HEADERS: TypeAdapter[_Header] = TypeAdapter(_Header)


def longest_message(adapter_bytes: int = 0) -> int:
    """Return the size of the longest message that a federation may send, in bytes.

    Args:
        adapter_bytes: size of the global adapter. Masked words can be twice as wide as an adapter's values.
    """
    return 2 * adapter_bytes + 16 * 2**20


def encode(message: Request | FinishRequest | Answer) -> bytes:
    """Return a message as bytes. A score travels without its confusion table and its outcomes."""
    header, tensors = _taken_apart(message)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    text = header.model_dump_json()
    if isinstance(header, _UpdateHeader):
        text = text.ljust(-len(text) // _STEP * -_STEP)
    return save(contiguous, {_METADATA: f"{PROTOCOL_VERSION}\n{text}"})


def _taken_apart(message: Request | FinishRequest | Answer) -> tuple[_Header, Mapping[str, Tensor]]:
    """Return the header and the tensors of a message."""
    match message:
        case Train(round_index, adapter, evaluate, session, run, keep):
            form = _session_form(session) if session else None
            header = _TrainHeader(round_index=round_index, evaluate=evaluate, session=form, run=run, keep=keep)
            return header, adapter
        case FinishRequest(round_index, adapter, run):
            return _FinishHeader(round_index=round_index, run=run), adapter
        case PhaseRequest(phase, nonce, items):
            return _PhaseHeader(phase=phase, nonce=nonce), _tensors(items)
        case ClientUpdate(client, round_index, adapter, examples, loss, score, seconds):
            header = _UpdateHeader(
                client=client,
                round_index=round_index,
                examples=examples,
                loss=loss,
                score=score.to_wire() if score else None,
                seconds=dict(seconds),
            )
            return header, adapter
        case PhaseAnswer(client, nonce, items):
            return _AnswerHeader(client=client, nonce=nonce), _tensors(items)
        case Failure(client, reason):
            return _FailureHeader(client=client, reason=reason), {}


def _session_form(session: Session) -> _SessionForm:
    return _SessionForm(
        run=session.run,
        round_index=session.round_index,
        nonce=session.nonce,
        invited=session.invited,
        threshold=session.threshold,
        payload=session.payload,
    )


def decode(data: bytes, limit_bytes: int) -> Request | FinishRequest | Answer:
    """Return the message that `encode` turned into these bytes.

    Args:
        data: bytes from a party that may be faulty or hostile.
        limit_bytes: size of the longest message to accept.

    Raises:
        RefusalError: the bytes are too long, truncated, not a message, or a message of another protocol version.
    """
    if len(data) > limit_bytes:
        raise RefusalError(f"a message of {len(data)} bytes, longer than the {limit_bytes} allowed")
    try:
        text, version = _head(data)
        if version != PROTOCOL_VERSION:
            raise RefusalError(
                f"a message of protocol version {version}, and this side speaks version {PROTOCOL_VERSION}. "
                "Install the same version of fedcollm at the server and at every client."
            )
        header, tensors = _HEADERS.validate_json(text), load(data)  # in no fixed order, which refusals would show
        return _put_together(header, {name: tensors[name] for name in sorted(tensors)})
    except RefusalError:
        raise
    except Exception as error:  # whatever the bytes were, they are no message
        raise RefusalError(f"not a message of this protocol ({type(error).__name__})") from error


@dataclass(frozen=True)
class Head:
    """What a message says of itself.

    Attributes:
        kind: `train`, `finish`, `phase`, `update`, `answer`, `failure`, or `unknown`.
        phase: phase of secure aggregation; empty where there is none.
        round_index: index of the round; None where there is none.
    """

    kind: str = "unknown"
    phase: str = ""
    round_index: int | None = None


def head(data: bytes) -> Head:
    """Return the head of a message; that of an unknown kind if the bytes are none."""
    try:
        header = _HEADERS.validate_json(_head(data)[0])
    except Exception:  # as in `decode`
        return Head()
    return Head(header.kind, getattr(header, "phase", ""), getattr(header, "round_index", None))


def _head(data: bytes) -> tuple[str, int]:
    """Return the head of a message as JSON, and the version of its protocol.

    Raises:
        RefusalError: it is longer, or has more tensors or longer names than any message needs, or has a name twice.
        Exception: it is malformed.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) - 8 >= length > _LONGEST_HEAD:
        raise RefusalError(f"a message with a head of {length} bytes, longer than the {_LONGEST_HEAD} allowed")
    entries = json.loads(data[8 : 8 + length], object_pairs_hook=_once)
    if len(entries) - 1 > _MOST_TENSORS:
        raise RefusalError(f"a message with {len(entries) - 1} tensors, more than the {_MOST_TENSORS} allowed")
    if any(len(name) > _LONGEST_NAME for name in entries):
        raise RefusalError(f"a message with a tensor whose name is longer than the {_LONGEST_NAME} characters allowed")
    version, _, text = entries["__metadata__"][_METADATA].partition("\n")
    return text, int(version)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        RefusalError: a name occurs twice, of which each reader would take another one.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        raise RefusalError("a message in whose head a name occurs twice")
    return made


def _put_together(header: _Header, tensors: Mapping[str, Tensor]) -> Request | FinishRequest | Answer:
    """Return the message with this header and these tensors."""
    match header:
        case _TrainHeader():
            form = header.session
            session = form and Session(
                form.run, form.round_index, form.nonce, form.invited, form.threshold, form.payload
            )
            return Train(header.round_index, dict(tensors), header.evaluate, session, header.run, header.keep)
        case _FinishHeader():
            return FinishRequest(header.round_index, dict(tensors), header.run)
        case _PhaseHeader():
            return PhaseRequest(header.phase, header.nonce, _items(tensors))
        case _UpdateHeader():
            score = Score.from_wire(header.score) if header.score else None
            adapter, seconds = dict(tensors), header.seconds
            return ClientUpdate(
                header.client, header.round_index, adapter, header.examples, header.loss, score, seconds
            )
        case _AnswerHeader():
            return PhaseAnswer(header.client, header.nonce, _items(tensors))
        case _FailureHeader():
            return Failure(header.client, header.reason)


def _tensors(items: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Return byte strings as [n] uint8 tensors."""
    return {name: torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.empty(0, dtype=torch.uint8)
            for name, value in items.items()}  # fmt: skip


def _items(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return [n] uint8 tensors as byte strings: the inverse of `_tensors`.

    Raises:
        RefusalError: a tensor has another shape or another dtype.
    """
    if odd := [name for name, tensor in tensors.items() if tensor.dtype != torch.uint8 or tensor.dim() != 1]:
        raise RefusalError(f"item {odd[0]} is not a string of bytes")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
