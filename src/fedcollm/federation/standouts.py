"""Say which clients stand out by what their plain updates showed over the rounds of a run, and what to do.

A client is compared with the median of the other clients of each round. It stands out by a measure if the median over
rounds of its difference is at least `LARGEST_Z` robust standard deviations (1.4826 times the median absolute deviation
of the others, over all rounds) and at least an effect that matters, which keeps nearly equal clients from standing out.
Under secure aggregation, the server sees no single update, and nobody stands out.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedcollm.messages import RoundRecord, readable

#: Robust standard deviations from which a value is an outlier (Iglewicz and Hoaglin 1993).
LARGEST_Z = 3.5

#: Fewest clients with an update in a round that is looked at.
FEWEST = 3

#: Fewest rounds in which a client was seen: in one or two, clients with sound data that differ stand out by chance.
FEWEST_ROUNDS = 3

_DEVIATION = 1.4826  # of a normal distribution, over its median absolute deviation
_TINY = 1e-9


@dataclass(frozen=True)
class Measure:
    """One way in which a client can stand out.

    Attributes:
        scale: the value that is compared, such as a logarithm.
        floor: the smallest difference that matters.
        signs: 1 if larger values stand out, -1 if smaller ones do.
        words: says a difference of scaled values.
    """

    scale: Callable[[float], float]
    floor: float
    signs: Sequence[int]
    words: Callable[[float], str]


def _log(value: float) -> float:
    return math.log(max(value, _TINY))


#: What a plain update shows, as `Observer.seen` names it, to how it is compared.
MEASURES: Mapping[str, Measure] = {
    "norm": Measure(_log, math.log(2), (1, -1), lambda d: f"its change is {math.exp(d):.3g} times as large as"),
    "cosine": Measure(float, 0.2, (-1,), lambda d: f"the cosine of its change with the others' is {-d:.2f} below"),
    "loss": Measure(_log, math.log(1.5), (1,), lambda d: f"its training loss is {math.exp(d):.3g} times"),
    "score": Measure(float, 0.05, (-1,), lambda d: f"its model's score after training is {-d:.3f} below"),
}

_DATA = (
    "Wrong labels or garbled examples look like this, and so do sound data that are unlike the others': let its "
    "operator run `fedcollm audit` on its data"
)
_CLEANING = ". task.cleaning: {judge: ngrams_global} leaves out labels that are probably wrong"
_SIZE = (
    "Let its operator look at its number of examples, its version and its log; federation.aggregation: median bounds "
    "what one client can do"
)


def standouts(records: Sequence[RoundRecord], cleaning: bool = False) -> list[str]:
    """Return a sentence for each client that stands out over the rounds of a run.

    Args:
        records: the records of all rounds.
        cleaning: whether the clients clean their data already, which is not advised then.
    """
    rounds = [record.clients for record in records if len(record.clients) >= FEWEST]
    sentences: list[str] = []
    for client in sorted({client for one in rounds for client in one}):
        found = {name: effect for name in MEASURES if (effect := _effect(name, client, rounds)) is not None}
        if found:
            words = ", ".join(f"{MEASURES[name].words(effect)} the others'" for name, effect in found.items())
            advice = _SIZE if found.keys() == {"norm"} else _DATA + _CLEANING * (not cleaning)
            sentences.append(
                f"client {readable(client)} stands out (median of {len(rounds)} rounds): {words}. {advice}"
            )
    return sentences


def _effect(name: str, client: str, rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> float | None:
    """Return by how much a client differs from the others in one measure; None if it does not stand out."""
    measure, own, spread = MEASURES[name], list[float](), list[float]()
    for seen in rounds:
        values = {one: measure.scale(numbers[name]) for one, numbers in seen.items() if name in numbers}
        mine = values.pop(client, None)
        if mine is None or len(values) + 1 < FEWEST:
            continue
        middle = statistics.median(values.values())
        own.append(mine - middle)
        spread += [abs(value - middle) for value in values.values()]
    if len(own) < FEWEST_ROUNDS:
        return None
    effect, least = statistics.median(own), max(measure.floor, LARGEST_Z * _DEVIATION * statistics.median(spread))
    return effect if any(sign * effect >= least for sign in measure.signs) else None
