"""A client that receives and sends bytes: it answers requests, and refuses everything else."""

import hashlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fedcollm.errors import RefusalError
from fedcollm.federation.answered import LastAnswer
from fedcollm.federation.statistics import asked_for
from fedcollm.messages import (
    Answer,
    ClientUpdate,
    Failure,
    FinishRequest,
    PhaseAnswer,
    PhaseRequest,
    Request,
    TrainRequest,
    readable,
)
from fedcollm.progress import current, say
from fedcollm.transports.wire import decode, encode

_REMEMBERED = 1000  # largest number of requests that are recognized when they come again


class Answers(Protocol):
    """A client, with or without secure aggregation."""

    def answer(self, request: Request) -> Answer:
        """Do what the request asks for, or raise a RefusalError."""
        ...


@dataclass
class ClientEndpoint:
    """Answer requests in bytes. A repeated request gets the first answer again, and is not carried out twice.

    Answers are kept until the next request to train. After that, earlier requests are refused: carrying one of them out
    again would end the session that has begun since. An update is kept on disk before it leaves, so that a new process
    repeats it too. Phases of secure aggregation depend on secrets that end with the process: a new one refuses them.

    Attributes:
        id: the client's id.
        client: carries out the requests.
        limit_bytes: size of the longest request to accept.
        finish: saves what the last message of a run brings; None if the client does not take it.
        answer_after: the answer to a request to train leaves after a whole multiple of so many seconds, so that the
            time does not tell what came of it; 0 lets it leave at once.
        wait: waits for a number of seconds.
        sent: keeps the last update; None keeps it in memory only.
    """

    id: str
    client: Answers = field(repr=False)
    limit_bytes: int
    finish: Callable[[FinishRequest], None] | None = field(default=None, repr=False)
    answer_after: float = 0.0
    wait: Callable[[float], object] = field(default=time.sleep, repr=False)
    sent: LastAnswer | None = field(default=None, repr=False)
    _answers: dict[str, bytes] = field(init=False, repr=False, default_factory=dict[str, bytes])
    _trains: bool = field(init=False, repr=False, default=False)

    def __call__(self, data: bytes) -> bytes:
        """Return the answer to a request.

        A refusal is sent with its reason. Of any other error only the operator learns the kind and the text, because
        both may tell something about the client's data.
        """
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._answers:
            start, self._trains = time.perf_counter(), False
            kept = self.sent.get(digest) if self.sent else None
            answer = self._answer(data, digest) if kept is None else kept
            if self._trains:  # whatever comes of it; nothing that depends on it is left to do
                self._wait_since(start)
            self._answers[digest] = answer
            while len(self._answers) > _REMEMBERED:
                self._answers.pop(next(iter(self._answers)))
        return self._answers[digest] or encode(Failure(self.id, "a request from before the last one to train"))

    def _answer(self, data: bytes, digest: str) -> bytes:
        """Return the answer to a request that has not been answered yet, and tell this client's operator about it."""
        try:
            request = decode(data, self.limit_bytes)
            if isinstance(request, FinishRequest) and self.finish is not None:
                self.finish(request)
                return encode(PhaseAnswer(self.id, "finished", {}))
            if not isinstance(request, (TrainRequest, PhaseRequest)):
                raise RefusalError("an answer was sent to a client")
            self._trains = isinstance(request, TrainRequest)
            if isinstance(request, TrainRequest):
                current.round = request.round_index
                self._answers = dict.fromkeys(self._answers, b"")
            say(_described(request))
            start = time.perf_counter()
            answer = self.client.answer(request)
            if isinstance(request, TrainRequest) and not request.keep and not asked_for(request):
                say(f"round {request.round_index}: trained in {time.perf_counter() - start:.1f} s")
            made = encode(answer)
            if self.sent and isinstance(answer, ClientUpdate):
                self.sent.keep(digest, made)
            return made
        except RefusalError as error:  # which depends on the request alone
            self._trains = False
            say(f"refused: {readable(str(error))}", logging.WARNING)
            return encode(Failure(self.id, readable(str(error))))
        except Exception as error:  # a request that can't be carried out is lost, and not this process
            say(f"failed: {readable(f'{type(error).__name__}: {error}')}", logging.WARNING)
            return encode(Failure(self.id, "the client can't carry out the request; its operator sees why"))

    def _wait_since(self, start: float) -> None:
        """Wait until a whole multiple of `answer_after` seconds has passed since the start."""
        if self.answer_after > 0:
            spent = time.perf_counter() - start
            self.wait(max(1, math.ceil(spent / self.answer_after)) * self.answer_after - spent)


def _described(request: Request) -> str:
    if isinstance(request, TrainRequest) and asked_for(request):
        return "computing the statistics of the examples"
    if isinstance(request, TrainRequest):
        return "tuning the final adapter, to keep it" if request.keep else f"round {request.round_index}: training"
    return readable(f"secure aggregation: {request.phase}")
