"""Validate the clients' answers, and put their updates in a fixed order."""

import contextlib
import math
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedcollm.errors import RoundFailedError, SpoiledRoundError
from fedcollm.federation.statistics import asked_for, impossible
from fedcollm.federation.upload_format import WHOLE, UploadFormat
from fedcollm.messages import (
    LARGEST_LOSS,
    MOST_EXAMPLES,
    MOST_SECONDS,
    Answer,
    ClientUpdate,
    Failure,
    Score,
    TrainRequest,
    distance,
    misshapen,
    not_finite,
    readable,
)

#: The largest mean of a metric beside the main one that has a count of its own: an error rate can exceed 1, where more
#: words are heard than were said, but a decoder writes only some hundred tokens per clip.
_LARGEST_RATE = 1_000

#: The parts of a round that clients tell the seconds of, and how many metrics a score may have, with what names.
_PARTS, _MOST_METRICS, _LONGEST_NAME = {"clients", "evaluation"}, 50, 60


def in_order(updates: Iterable[ClientUpdate], ids: Sequence[str]) -> Iterator[ClientUpdate]:
    """Yield updates in the order of `ids`, so that their floating-point sum does not depend on who answers first.

    An update waits until those of all earlier ids have arrived, or until no more updates arrive.

    Args:
        updates: the updates in the order of their arrival.
        ids: ids of the clients that were asked.
    """
    waiting: dict[str, ClientUpdate] = {}
    expected = list(ids)
    for update in updates:
        waiting[update.client] = update
        while expected and expected[0] in waiting:
            yield waiting.pop(expected.pop(0))
    yield from (waiting[client] for client in expected if client in waiting)


@dataclass(frozen=True)
class Expected:
    """What a valid update looks like.

    Attributes:
        request: the request that the clients answer.
        clients: ids of the clients that were asked.
        max_update_norm: the largest allowed L2 norm of θ_k − θ.
        private: whether updates are under privacy, and must contain no number of examples, loss, score or seconds.
        uploads: the upload format of each client, by id; a client without an entry sends the whole adapter.
    """

    request: TrainRequest
    clients: Sequence[str]
    max_update_norm: float
    private: bool = False
    uploads: Mapping[str, UploadFormat] = field(default_factory=dict[str, UploadFormat])

    def form(self, client: str) -> UploadFormat:
        """Return the upload format of a client."""
        return self.uploads.get(client, WHOLE)

    def opened(self, update: ClientUpdate) -> ClientUpdate:
        """Return an update with the adapter that it holds, in θ's dtypes."""
        return replace(update, adapter=self.form(update.client).opened(update.adapter, self.request.adapter))


def validate_updates(answers: Iterable[Answer], expected: Expected, lost: dict[str, str]) -> Iterator[ClientUpdate]:
    """Yield the valid updates, cast to θ's dtypes. Record in `lost` why each remaining client was rejected or missing.

    Args:
        answers: answers from a transport; a client may be faulty or hostile.
        expected: what a valid update looks like.
        lost: receives the reason by client id; it is complete when the iterator is exhausted.
    """
    waited_for = set(expected.clients)
    for answer in answers:
        if reason := _objection(answer, expected, waited_for):
            lost[readable(answer.client)] = readable(reason)
        elif isinstance(answer, ClientUpdate):
            waited_for.remove(answer.client)
            yield expected.opened(answer)
    lost.update({client: "no answer" for client in expected.clients if client in waited_for and client not in lost})


def _objection(answer: Answer, expected: Expected, waited_for: Collection[str]) -> str | None:
    """Return why an answer is rejected; None if it is valid. An answer that can't even be looked at is rejected."""
    try:
        return _found_wrong(answer, expected, waited_for)
    except Exception as error:  # a faulty answer loses its client, not the round
        return f"an answer that can't be handled ({type(error).__name__})"


def _found_wrong(answer: Answer, expected: Expected, waited_for: Collection[str]) -> str | None:
    """Return why an answer is rejected; None if it is valid."""
    request, form = expected.request, expected.form(answer.client)
    if isinstance(answer, Failure):
        return answer.reason
    if answer.client not in waited_for:
        return "a second update" if answer.client in expected.clients else "unknown client"
    if not isinstance(answer, ClientUpdate):
        return "not an update"
    if answer.round_index != request.round_index:
        return f"an update for round {answer.round_index}, not {request.round_index}"
    if reason := _odd_numbers(answer, expected.private) or misshapen(answer.adapter, form.expected(request.adapter)):
        return reason
    if form.bits is not None and (name := not_finite(answer.adapter)):
        return f"tensor {name} is not finite"
    return _odd_values(expected.opened(answer), expected, form)


def _odd_values(update: ClientUpdate, expected: Expected, form: UploadFormat) -> str | None:
    """Return why the values of an adapter or of statistics are rejected; None if they are valid."""
    start, told = form.part(expected.request.adapter), asked_for(expected.request)
    change = distance(update.adapter, start)  # finite only if every value is
    if not math.isfinite(change) and (name := not_finite(update.adapter)):
        return f"tensor {name} is not finite"
    if change > expected.max_update_norm:
        what = "the statistics have an L2 norm of" if told else "the adapter changed by"
        unit = "" if told else " (L2 norm)"
        return f"{what} {change:.4g}{unit}, more than federation.max_update_norm {expected.max_update_norm:g}"
    return impossible(update.adapter) if told and not expected.private else None


def _odd_numbers(update: ClientUpdate, private: bool) -> str | None:
    """Return what is wrong with the numbers that an update contains beside its adapter; None if nothing is."""
    examples, loss = update.examples, update.loss
    if private:
        sent = (examples, loss, update.score) != (None, None, None) or update.seconds
        return "numbers of private data beside the adapter" if sent else None
    if examples is None or loss is None or not (1 <= examples <= MOST_EXAMPLES and 0 <= loss <= LARGEST_LOSS):
        return f"{str(examples)[:20]} examples (at most {MOST_EXAMPLES}) with a loss of {loss}"
    if not update.seconds.keys() <= _PARTS or any(not 0 <= value <= MOST_SECONDS for value in update.seconds.values()):
        return "seconds that no round can take"
    return odd_score(update.score)


def odd_score(score: Score | None) -> str | None:
    """Return what is wrong with a client's score; None if nothing is, or if there is no score."""
    if score is None:
        return None
    if (
        any(len(name) > _LONGEST_NAME or not name.isprintable() for name in score.sums)
        or len(score.sums) > _MOST_METRICS
    ):
        return "a score of metrics that have no names"
    main = next(iter(score.sums), None)
    least = {name: int(name == main) for name in score.counts}  # of a further metric, a client may have nothing
    fits = score.sums and score.counts.keys() <= score.sums.keys() and 1 <= score.count <= MOST_EXAMPLES
    fits = fits and all(least[name] <= count <= MOST_EXAMPLES for name, count in score.counts.items())
    for name, value in score.sums.items():
        most = 1 if name == main or name not in score.counts else _LARGEST_RATE
        fits = fits and abs(value) <= most * score.counts.get(name, score.count)
    return None if fits else "a score that no examples can have"


@contextlib.contextmanager
def with_client_failures(lost: Mapping[str, str]) -> Generator[None, None, None]:
    """Add to the message of a failed round why each client was lost."""
    try:
        yield
    except SpoiledRoundError:
        raise
    except RoundFailedError as error:
        told = "; ".join(f"client {client}: {reason}" for client, reason in lost.items())
        raise RoundFailedError(f"{error} ({told})" if told else str(error)) from error
