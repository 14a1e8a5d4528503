"""Estimate the memory of the largest batches of a run, from the models' configurations and the examples' sizes."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fedcollm.config import RunConfig
from fedcollm.data.catalogue import BaseModels
from fedcollm.data.pool import Split
from fedcollm.runs.activations import Activations

# Activations, fitted to the memory that the embedded pair of models took with prompts of 60 to 1000 tokens:
_KEPT = 30  # activations per position and layer that are kept for the backward pass, in multiples of the hidden size
_PASSING = 60  # activations per position of the layer being computed when none are kept (scoring), in the same unit
_LOGITS = 4.5  # float32 copies of each row of logits


def activation_bytes(
    config: RunConfig,
    known: BaseModels,
    shapes: Mapping[str, Any],
    itemsizes: Mapping[str, int],
    parts: Split | None,
    measured: Mapping[str, Activations | None] = MappingProxyType({}),
) -> int:
    """Return an estimate of the activations of the largest batches, in bytes.

    A client's training keeps the SLM's activations, and distillation keeps those of both models. The larger of the two
    counts. Scoring is added to it, because an allocator does not return all of its memory in between. Together with
    weights and libraries, the estimate was 0.9 to 1.3 times the memory that processes took (text of 60 to 1000 tokens,
    free answers of 100 tokens, bfloat16).

    Args:
        config: the run's configuration.
        known: the modality's knowledge of base models.
        shapes: role to the configuration of its base network; a network that has none (None) is not counted.
        itemsizes: role to the bytes of one value of its base.
        parts: the run's data; None if it is not available, and a typical example is then assumed.
        measured: role to the activations of one example, if they were measured. They replace those that follow from
            the configuration of the base.
    """
    private = None if parts is None or not parts.private else [x for part in parts.private.values() for x in part]
    shape = shapes["slm"]

    def largest(examples: Sequence[Any] | None, batch_size: int, scoring: bool = False) -> tuple[int, int]:
        """Return the numbers of positions and of rows of logits in the largest batch."""
        some = examples if examples is not None else [None] * batch_size
        sizes = sorted((known.footprint(x, shape, scoring) for x in some), reverse=True)[:batch_size]
        return sum(positions for positions, _ in sizes), sum(rows for _, rows in sizes)

    client = largest(private, config.client.at_once)
    public = largest(parts and parts.public, config.server.at_once)
    scored = largest(parts and parts.test, config.evaluation.batch_size, scoring=True)

    def training(role: str, positions: int, rows: int) -> float:
        if known_activations := measured.get(role):
            return known_activations.training * rows * itemsizes[role] / 4
        recomputed = (config.slm if role == "slm" else config.llm).gradient_checkpointing
        return _training_bytes(shapes[role], itemsizes[role], positions, rows, recomputed)

    def passing(role: str) -> float:
        if known_activations := measured.get(role):
            return known_activations.scoring * scored[1] * itemsizes[role] / 4
        return _PASSING * scored[0] * number_of(shapes[role], "hidden_size") * itemsizes[role]

    distilling = sum(training(role, *public) for role in shapes) if "llm" in shapes else 0
    return round(max(training("slm", *client), distilling) + max(map(passing, shapes)))


def _training_bytes(shape: Any, itemsize: int, positions: int, rows: int, recomputed: bool) -> float:
    """Return the bytes kept for the backward pass of a batch, given its numbers of positions and of rows of logits.

    With layers that are computed again, only their inputs are kept, and the activations of one layer at a time.
    """
    columns = number_of(shape, "vocab_size") or number_of(shape, "num_labels")
    layers = number_of(shape, "num_hidden_layers")
    values = positions * number_of(shape, "hidden_size") * (layers + _KEPT if recomputed else layers * _KEPT)
    return values * itemsize + rows * columns * 4 * _LOGITS


def number_of(shape: Any, name: str) -> int:
    """Return a number from a network's configuration; 0 if the configuration does not have it."""
    return getattr(shape, name, None) or 0
