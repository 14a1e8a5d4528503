"""Personalization: after the last round, every client fine-tunes the final adapter once more and keeps the result.

This is the simplest method of personalization, and a strong one (Cheng, Chadha and Duchi, "Fine-tuning in federated
learning: a simple but tough-to-beat baseline", arXiv 2108.07313v2). No adapter and no number returns to the server: a
client answers the same whatever came of it. Only a simulation, which sees its clients, knows the scores.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fedcollm.messages import Answer, ClientUpdate, Failure, RoundRecord, Score, TrainRequest, readable


def lost_clients(request: TrainRequest, ids: Sequence[str], answers: Iterable[Answer]) -> dict[str, str]:
    """Return why clients did not confirm a request to keep the final adapter, by client id.

    Args:
        request: the request that the clients answer.
        ids: ids of the clients that were asked.
        answers: answers from a transport; a client may be faulty or hostile.
    """
    lost = dict.fromkeys(ids, "no answer")
    for answer in answers:
        if answer.client not in lost:
            continue
        if reason := _objection(answer, request):
            lost[answer.client] = readable(reason)
        else:
            lost.pop(answer.client)
    return lost


def with_personal(
    record: RoundRecord, lost: Mapping[str, str], scores: Mapping[str, Score]
) -> tuple[RoundRecord, dict[str, float]]:
    """Add what is known of the clients' own adapters to the record of the last round.

    Args:
        record: the record of the last round.
        lost: from `lost_clients`.
        scores: client id to the score of its adapter, as a simulation sees it.

    Returns:
        The record, and each score's value. In the record, the score `personal` is their mean, if there are any, and
        `lost` says of each client that did not answer why it did not.
    """
    values = {client: score.value for client, score in scores.items()}
    mean = {"personal": sum(values.values()) / len(values)} if values else {}
    gone = {client: f"keeps no adapter of its own: {reason}" for client, reason in lost.items()}
    return replace(record, scores={**record.scores, **mean}, lost={**record.lost, **gone}), values


def _objection(answer: Answer, request: TrainRequest) -> str | None:
    """Return why an answer is not valid; None if it is."""
    if isinstance(answer, Failure):
        return answer.reason
    return None if answer == ClientUpdate(answer.client, request.round_index, {}) else "an unexpected answer"
