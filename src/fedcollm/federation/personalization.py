"""After the last round: every client tunes the final adapter once more, for itself, and keeps the result.

The plainest personalization, and a strong one (Cheng, Chadha and Duchi, "Fine-tuning in federated learning: a simple
but tough-to-beat baseline", arXiv 2108.07313v2). No adapter comes back, only whether there is one now and, without
privacy, what it scores.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from fedcollm.messages import Answer, ClientUpdate, Failure, RoundRecord, TrainRequest, readable


def with_personal(
    record: RoundRecord, request: TrainRequest, ids: Sequence[str], answers: Iterable[Answer]
) -> tuple[RoundRecord, dict[str, float]]:
    """A last round's record with the mean score of the clients' own adapters, and the score of each that told one.

    Args:
        record: of the last round.
        request: what was asked.
        ids: who was asked.
        answers: of a transport, from clients that may be faulty or hostile.

    Returns:
        The record, with `personal` among the scores if any client told one, the clients' seconds, and those that keep
        nothing among the lost; and client id to score, in the order of `ids`.
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
    """Why an answer does not count; None if it does."""
    if isinstance(answer, Failure):
        return answer.reason
    if not isinstance(answer, ClientUpdate) or answer.round_index != request.round_index or answer.adapter:
        return "another answer than was asked for"
    if answer.score and not math.isfinite(answer.score.value):
        return f"a score of {answer.score.value}"
    return None
