"""Personalization: after the last round, every client fine-tunes the final adapter once more and keeps the result.

This is the simplest method of personalization, and a strong one (Cheng, Chadha and Duchi, "Fine-tuning in federated
learning: a simple but tough-to-beat baseline", arXiv 2108.07313v2). No adapter returns to the server. A client only
confirms that it has an adapter and, without privacy, reports the adapter's score.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from fedcollm.federation.aggregation.validation import odd_score
from fedcollm.messages import Answer, ClientUpdate, Failure, RoundRecord, TrainRequest, readable


def with_personal(
    record: RoundRecord, request: TrainRequest, ids: Sequence[str], answers: Iterable[Answer]
) -> tuple[RoundRecord, dict[str, float]]:
    """Add the scores of the clients' own adapters to the record of the last round.

    Args:
        record: the record of the last round.
        request: the request that the clients answer.
        ids: ids of the clients that were asked.
        answers: answers from a transport; a client may be faulty or hostile.

    Returns:
        The record, and the score of each client that reported one, in the order of `ids`. In the record, the score
        `personal` is the mean of these, if there are any; the clients' seconds are added; and `lost` says of each
        client that kept no adapter why it did not.
    """
    lost = dict.fromkeys(ids, "no answer")
    scores: dict[str, float] = {}
    seconds = dict(record.seconds)
    for answer in answers:
        if answer.client not in lost:
            continue
        if reason := _objection(answer, request):
            lost[answer.client] = readable(reason)
        elif isinstance(answer, ClientUpdate):
            lost.pop(answer.client)
            scores |= {answer.client: answer.score.value} if answer.score else {}
            seconds |= {part: seconds.get(part, 0.0) + value for part, value in answer.seconds.items()}
    ordered = {client: scores[client] for client in ids if client in scores}
    mean = {"personal": sum(ordered.values()) / len(ordered)} if ordered else {}
    gone = {client: f"keeps no adapter of its own: {reason}" for client, reason in lost.items()}
    return replace(record, scores={**record.scores, **mean}, seconds=seconds, lost={**record.lost, **gone}), ordered


def _objection(answer: Answer, request: TrainRequest) -> str | None:
    """Return why an answer is not valid; None if it is."""
    if isinstance(answer, Failure):
        return answer.reason
    if not isinstance(answer, ClientUpdate) or answer.round_index != request.round_index or answer.adapter:
        return "an unexpected answer"
    return odd_score(answer.score)
