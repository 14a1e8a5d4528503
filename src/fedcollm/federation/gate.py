"""Weigh what each model teaches the other by how reliable it is, so that a bad teacher does little harm.

A model's reliability is measured in every round, for each class that it predicts, on labelled public examples whose
labels nothing is trained on: on examples that it was trained on, any model is reliable. It is relative to the model
that it teaches. Both accuracies are taken above chance, on the examples for which the teacher predicts the class:

    w(c) = min(1, (accuracy of the teacher − chance) / (accuracy of the taught model − chance))

A class has few such examples, so each accuracy is a mean with `PRIOR` more examples of the accuracy over all classes.
An example of D_a, labelled or not, weighs w(c) for the class c that the teacher predicts for it.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.progress import say
from fedcollm.seeding import RunIdentity
from fedcollm.training.distillation import ModelPair
from fedcollm.training.fine_tuning import predict
from fedcollm.training.trust import Trust

#: One of so many labelled examples is held out, and so many must be.
EVERY, FEWEST = 4, 2

#: Number of examples that the accuracy over all classes counts for in that of each class.
PRIOR = 4.0

#: The teacher of the model of each role.
_TEACHERS = {"slm": "llm", "llm": "slm"}


def hold_out(public: Sequence[Any], seed: int) -> tuple[list[Any], list[Any]]:
    """Return D_a with the labels of a quarter of its labelled examples removed, and these examples with their labels.

    Each label is held out about as often as it occurs.

    Args:
        public: D_a.
        seed: seed of the choice.
    """
    labelled = [place for place, example in enumerate(public) if example.label is not None]
    random.Random(seed).shuffle(labelled)
    labelled.sort(key=lambda place: str(public[place].label))
    chosen = set(labelled[EVERY - 1 :: EVERY])
    rest = [example.without_label() if place in chosen else example for place, example in enumerate(public)]
    return rest, [public[place] for place in sorted(chosen)]


def reliability(
    predicted: Sequence[str], teacher: Sequence[bool], taught: Sequence[bool], chance: float
) -> Callable[[str], float]:
    """Return a function from a class that the teacher predicts to the weight of what it teaches, from 0 to 1.

    Args:
        predicted: the class that the teacher predicts for each held-out example.
        teacher: whether it is right.
        taught: whether the model that it teaches is right about the same example.
        chance: the accuracy of guessing.
    """
    overall = [sum(right) / len(right) for right in (teacher, taught)]

    def weight(name: str) -> float:
        places = [place for place, one in enumerate(predicted) if one == name]
        above = [
            (sum(right[place] for place in places) + PRIOR * mean) / (len(places) + PRIOR) - chance
            for right, mean in zip((teacher, taught), overall, strict=True)
        ]
        if above[0] <= 0:
            return 0.0
        return min(1.0, above[0] / above[1]) if above[1] > 0 else 1.0

    return weight


#: Options of `server.distillation.gate` to the function that weighs a class; None if every row counts alike.
GATES: Mapping[str, Callable[..., Callable[[str], float]] | None] = {"none": None, "reliability": reliability}


@dataclass(frozen=True)
class Gate:
    """Weighs the examples of D_a for the distillation of a round.

    Attributes:
        kind: a key of `GATES`, not `none`.
        held_out: labelled examples whose labels nothing is trained on.
    """

    kind: str
    held_out: Sequence[Any] = field(repr=False)

    def trust(self, pair: ModelPair, public: Sequence[Any], batch_size: int) -> tuple[Trust, tuple[str]]:
        """Return how much each model is taught on each example of D_a, and say it in a sentence, which is returned too.

        Args:
            pair: both models; they are left in evaluation mode.
            public: the part of D_a that the round uses.
            batch_size: number of examples per batch.

        Raises:
            UserError: the examples have no choices.
        """
        known: dict[str, list[str]] = {}
        guesses: dict[str, list[str]] = {}
        chance = 0.0  # the same for both models
        for role, model in pair.models().items():
            modality = pair.modality.of(role)
            known[role], chance = _classes(modality, model, self.held_out, batch_size)
            guesses[role], _ = _classes(modality, model, public, batch_size)
        labels: list[str] = [example.label for example in self.held_out]
        right = {role: [one == label for one, label in zip(known[role], labels, strict=True)] for role in known}
        trust: dict[str, list[float]] = {}
        for taught, teacher in _TEACHERS.items():
            weigh = GATES[self.kind] or reliability
            weight = weigh(known[teacher], right[teacher], right[taught], chance)
            weights = {name: weight(name) for name in set(guesses[teacher])}
            trust[taught] = [weights[name] for name in guesses[teacher]]
        note = _said(right, trust)
        say(note)
        return trust, (note,)


def build_gate(kind: str, public: Sequence[Any], identity: RunIdentity) -> tuple[Sequence[Any], Gate | None]:
    """Return D_a without the labels that a gate needs for itself, and the gate; None if every row counts alike.

    Args:
        kind: a key of `GATES`.
        public: D_a.
        identity: the run, whose seed decides which labels are held out.

    Raises:
        UserError: too few public examples are labelled.
    """
    if GATES[kind] is None:
        return public, None
    rest, held_out = hold_out(public, identity.derive("gate"))
    if len(held_out) < FEWEST:
        labelled = sum(example.label is not None for example in public)
        raise UserError(
            f"server.distillation.gate {kind} holds out a quarter of the labelled public examples, and {labelled} are "
            f"too few. Raise task.public_size to {EVERY * FEWEST} or more, or set server.distillation.gate: none."
        )
    return rest, Gate(kind, held_out)


def check_gate(kind: str, modality: Modality, example: Any) -> None:
    """Check that a modality tells how likely each label of an example is, which a gate needs.

    Args:
        kind: a key of `GATES`.
        modality: the modality, which may be the user's own.
        example: one example of the task.

    Raises:
        UserError: names what is missing.
    """
    if GATES[kind] is None:
        return
    missing = [
        f"{type(modality.of(role)).__name__}.probabilities"
        for role in _TEACHERS
        if type(modality.of(role)).probabilities is Modality.probabilities
    ]
    missing += [] if hasattr(example, "with_answer") else [f"{type(example).__name__}.with_answer"]
    if missing:
        raise UserError(
            f"server.distillation.gate {kind} needs {', '.join(dict.fromkeys(missing))}, which this modality lacks. "
            "Define them, or set server.distillation.gate: none."
        )


def _classes(modality: Modality, model: Any, examples: Sequence[Any], batch_size: int) -> tuple[list[str], float]:
    """Return the likeliest class of each example, and the mean accuracy of guessing; 0 without examples."""
    beliefs = predict(modality, model, examples, batch_size, "gate")
    if any(len(belief) < 2 for belief in beliefs):
        raise UserError(
            "server.distillation.gate needs choices, and an example has one answer only. "
            "Set server.distillation.gate: none."
        )
    names = [
        str(example.with_answer(int(belief.argmax())).label) for example, belief in zip(examples, beliefs, strict=True)
    ]
    return names, sum(1 / len(belief) for belief in beliefs) / max(len(beliefs), 1)


def _said(right: Mapping[str, Sequence[bool]], trust: Trust) -> str:
    """Return a sentence on the accuracies and the mean weights.

    >>> _said({"slm": [True, False], "llm": [True, True]}, {"slm": [1.0], "llm": [0.5, 0.25]})[:67]
    'gate: of 2 held-out examples, the small model labels 50 % correctly'
    """
    correct = {role: 100 * sum(one) / len(one) for role, one in right.items()}
    mean = {role: sum(weights) / max(len(weights), 1) for role, weights in trust.items()}
    return (
        f"gate: of {len(right['slm'])} held-out examples, the small model labels {correct['slm']:.0f} % correctly and "
        f"the large one {correct['llm']:.0f} %; what the small model teaches weighs {mean['llm']:.2f} on average, and "
        f"what the large one teaches {mean['slm']:.2f}"
    )
