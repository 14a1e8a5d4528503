"""Weighted mean of the clients' adapters (Algorithm 1, server side)."""

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedcollm.errors import RoundFailedError
from fedcollm.federation.aggregation.mean import Mean, WeightedMean
from fedcollm.federation.upload_format import WHOLE, UploadFormat, widened
from fedcollm.messages import Adapter, Answer, ClientUpdate, Failure, TrainRequest, misfit, norm, readable

NO_UPDATE = "no client's update could be used; the last good state is kept: --resume tries again"


@dataclass(frozen=True)
class Aggregate:
    """What the server keeps of a round's updates: sums, no single client's values.

    Attributes:
        adapter: the weighted mean, in θ's dtype.
        loss: mean training loss over examples; None under privacy.
        clients_score: mean over clients of their tuned SLM's score; None if none was asked for, or under privacy.
        seconds: sums over clients by part; empty under privacy.
        participants: ids, in order.
        lost: client id to when it was lost, or why an answer of it was refused.
        bytes_up: bytes that one client sent, on average over those asked.
        bytes_down: bytes that one client received.
    """

    adapter: Adapter
    loss: float | None
    clients_score: float | None
    seconds: dict[str, float]
    participants: tuple[str, ...]
    lost: Mapping[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0


def in_order(updates: Iterable[ClientUpdate], ids: Sequence[str]) -> Iterator[ClientUpdate]:
    """Updates in the order of `ids`, each as early as it can be had; only those that came too early wait.

    A fixed order makes the floating-point sum independent of who answers first.
    """
    waiting: dict[str, ClientUpdate] = {}
    expected = list(ids)
    for update in updates:
        waiting[update.client] = update
        while expected and expected[0] in waiting:
            yield waiting.pop(expected.pop(0))
    yield from (waiting[client] for client in expected if client in waiting)


def validate_updates(
    answers: Iterable[Answer],
    request: TrainRequest,
    ids: Sequence[str],
    max_update_norm: float,
    lost: dict[str, str],
    private: bool = False,
    uploads: Mapping[str, UploadFormat] | None = None,
) -> Iterator[ClientUpdate]:
    """The updates that answer a request, in its dtypes; `lost` gets the reason for every other one, or missing one.

    Args:
        answers: of a transport, from clients that may be faulty or hostile.
        request: what was asked.
        ids: who was asked.
        max_update_norm: bound of the L2 norm of θ_k − θ.
        lost: client id to reason; filled here, completely once the iterator is at its end.
        private: updates come without numbers of examples and losses.
        uploads: client id to the form of its adapter, where that is not θ's own.
    """
    waited_for, forms = set(ids), uploads or {}
    for answer in answers:
        form = forms.get(answer.client, WHOLE)
        if reason := _objection(answer, request, form, waited_for, ids, max_update_norm, private):
            lost[answer.client] = readable(reason)
        elif isinstance(answer, ClientUpdate):
            waited_for.remove(answer.client)
            yield replace(answer, adapter=widened(answer.adapter, request.adapter))
    lost.update({client: "no answer" for client in ids if client in waited_for and client not in lost})


def _objection(
    answer: Answer,
    request: TrainRequest,
    form: UploadFormat,
    waited_for: Collection[str],
    ids: Collection[str],
    max_update_norm: float,
    private: bool,
) -> str | None:
    """Why an answer is refused; None if it is not."""
    if isinstance(answer, Failure):
        return answer.reason
    if answer.client not in waited_for:
        return "a second update" if answer.client in ids else "unknown client"
    if not isinstance(answer, ClientUpdate):
        return "not an update"
    if answer.round_index != request.round_index:
        return f"an update for round {answer.round_index}, not {request.round_index}"
    if reason := _odd_numbers(answer, private) or misfit(answer.adapter, form.expected(request.adapter)):
        return reason
    start = form.part(request.adapter)
    change = math.hypot(*(norm(tensor - start[name]) for name, tensor in answer.adapter.items()))
    if change > max_update_norm:
        return f"the adapter changed by {change:.4g} (L2 norm), more than {max_update_norm:g}"
    return None


def _odd_numbers(update: ClientUpdate, private: bool) -> str | None:
    """What is wrong with the numbers beside an adapter; None if nothing is."""
    examples, loss = update.examples, update.loss
    if private:
        sent = (examples, loss, update.score) != (None, None, None) or update.seconds
        return "numbers of private data beside the adapter" if sent else None
    if examples is None or loss is None or examples < 1 or not math.isfinite(loss) or loss < 0:
        return f"{examples} examples with a loss of {loss}"
    return None


@contextlib.contextmanager
def with_client_failures(lost: Mapping[str, str]) -> Iterator[None]:
    """Add to the message of a failed round why clients were lost."""
    try:
        yield
    except RoundFailedError as error:
        told = "; ".join(f"client {client}: {reason}" for client, reason in lost.items())
        raise RoundFailedError(f"{error} ({told})" if told else str(error)) from error


def aggregate(updates: Iterable[ClientUpdate], uniform: bool = False, mean: Mean | None = None) -> Aggregate:
    """Fold updates into their mean, an update at a time.

    Args:
        updates: in a fixed order.
        uniform: weight 1/K (the paper's Algorithm 1) instead of n_k / n (FedAvg, McMahan et al. 2017); needed for
            updates without a number of examples.
        mean: what kind of mean, still empty; None: of every value.

    Raises:
        RoundFailedError: no updates.
    """
    mean = mean or WeightedMean()
    examples = loss = 0.0
    scores: list[float] = []
    seconds: dict[str, float] = {}
    participants: list[str] = []
    for update in updates:
        mean.add(update.adapter, 1.0 if uniform else float(update.examples or 0))
        examples += update.examples or 0
        loss += (update.loss or 0.0) * (update.examples or 0)
        scores += [update.score.value] if update.score else []
        seconds = {part: seconds.get(part, 0.0) + value for part, value in update.seconds.items()}
        participants.append(update.client)
    if not participants:
        raise RoundFailedError(NO_UPDATE)
    mean_score = sum(scores) / len(scores) if scores else None
    return Aggregate(mean.value(), loss / examples if examples else None, mean_score, seconds, tuple(participants))
