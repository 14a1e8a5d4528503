"""A client behind bytes: what it is sent is a request or is refused, and what it sends is an answer."""

import hashlib
import time
from dataclasses import dataclass, field
from typing import Protocol

from fedcollm.errors import FedcollmError, RefusalError
from fedcollm.messages import Answer, Failure, PhaseRequest, Request, TrainRequest, readable
from fedcollm.progress import say
from fedcollm.transports.wire import decode, encode

_REMEMBERED = 1000  # requests that are known again


class Answers(Protocol):
    """A client, under secure aggregation or not."""

    def answer(self, request: Request) -> Answer:
        """Do what is asked, or raise a RefusalError."""
        ...


@dataclass
class ClientEndpoint:
    """Answers requests in bytes. The same request again gets the same answer again, without being done twice.

    Answers are kept until the next request to train; a request from before is refused, as it would end what came after.

    Attributes:
        id: of the client.
        client: does what is asked.
        limit_bytes: the longest request to look at.
    """

    id: str
    client: Answers = field(repr=False)
    limit_bytes: int
    _answers: dict[bytes, bytes] = field(init=False, repr=False, default_factory=dict)

    def __call__(self, data: bytes) -> bytes:
        """One answer; a refusal travels with its reason, another error only with its kind, as it may speak of data."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._answers:
            self._answers[digest] = encode(self._answer(data))
            while len(self._answers) > _REMEMBERED:
                self._answers.pop(next(iter(self._answers)))
        return self._answers[digest] or encode(Failure(self.id, "a request from before the last one to train"))

    def _answer(self, data: bytes) -> Answer:
        try:
            request = decode(data, self.limit_bytes)
            if not isinstance(request, (TrainRequest, PhaseRequest)):
                raise RefusalError("an answer was sent to a client")
            if isinstance(request, TrainRequest):
                self._answers = dict.fromkeys(self._answers, b"")
            say(_described(request))
            start = time.perf_counter()
            answer = self.client.answer(request)
            if isinstance(request, TrainRequest) and not request.keep:
                say(f"round {request.round_index}: trained in {time.perf_counter() - start:.1f} s")
            return answer
        except RefusalError as error:
            say(f"refused: {readable(str(error))}")
            return Failure(self.id, str(error))
        except FedcollmError as error:
            say(f"failed: {readable(str(error))}")
            return Failure(self.id, f"the client stopped with {type(error).__name__}; its operator sees why")


def _described(request: Request) -> str:
    if isinstance(request, TrainRequest):
        return "tuning the final adapter, to keep it" if request.keep else f"round {request.round_index}: training"
    return readable(f"secure aggregation: {request.phase}")
