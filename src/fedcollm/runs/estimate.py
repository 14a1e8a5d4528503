"""What a configuration would cost, from the models' configurations alone: nothing is trained or downloaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import nn

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.data.catalogue import BaseModels, base_models, load_pool
from fedcollm.data.partition import describe, split
from fedcollm.errors import UserError
from fedcollm.federation.upload_format import UploadFormat
from fedcollm.messages import adapter_bytes
from fedcollm.modalities.base import Pool, Split
from fedcollm.models.adapters import add_adapter, parameter_counts, resolve_device, resolve_dtype, trainable
from fedcollm.runs.build_clients import build_privacy, build_uploads

_ADAM_COPIES = 4  # value, gradient and AdamW's two moments, all float32

# What a process takes in training, fitted to what the embedded pair took with prompts of 60 to 1000 tokens:
_KEPT = 30  # values of hidden size per position that a layer keeps for its backward pass
_PASSING = 60  # the same for the one layer that is at work when nothing is kept, as in scoring
_LOGITS = 4.5  # float32 copies of a row of logits


@dataclass(frozen=True)
class RoleCost:
    """A role's size.

    Attributes:
        source: where the base comes from.
        base_parameters: frozen.
        adapter_parameters: trainable; all that travels.
        adapter_bytes: of its values, as they are trained and as a client receives them.
        base_bytes: in memory.
        upload_bytes: of its values, as a client sends them, on average.
    """

    source: str
    base_parameters: int
    adapter_parameters: int
    adapter_bytes: int
    base_bytes: int
    upload_bytes: int

    @property
    def share(self) -> float:
        """Adapter parameters over the base's."""
        return self.adapter_parameters / self.base_parameters

    @property
    def upload_share(self) -> float:
        """Bytes that a client sends over those of the base in memory."""
        return self.upload_bytes / self.base_bytes


@dataclass(frozen=True)
class Cost:
    """What a run would cost.

    Attributes:
        roles: `slm` and, where it is trained, `llm`.
        memory_bytes: estimate of weights, optimizer states and activations in one process.
        data: how the data would be split; None if it has to come from the hub first.
        data_note: why there is no data.
        epsilon: what the whole run spends of privacy; None without privacy.
        delta: δ of the same guarantee.
    """

    roles: dict[str, RoleCost]
    memory_bytes: int
    data: dict[str, Any] | None
    data_note: str = ""
    epsilon: float | None = None
    delta: float | None = None


def check(config: RunConfig, modality: BaseModels | None = None, pool: Pool | None = None) -> Cost:
    """Validate a configuration against its models and data.

    Args:
        config: of the run.
        modality: the user's own, instead of that of `config.task.name`.
        pool: the user's own data.

    Raises:
        UserError: a model, adapter or data error, as the run itself would give it.
    """
    device, known = resolve_device(config.device), modality or base_models(config.task)
    models = {"slm": config.slm} | ({"llm": config.llm} if config.server.epochs else {})
    named = config.federation.participants
    uploads = build_uploads(config, [str(k) for k in range(config.task.clients)] if named is None else named)
    roles, shapes, itemsizes = {}, {}, {}
    for role, model in models.items():
        dtype, network = resolve_dtype(model.dtype, device), outline(model, known)
        shapes[role], itemsizes[role] = getattr(network, "config", None), dtype.itemsize
        roles[role] = role_cost(model, network, dtype, uploads)
    parts, note = _data(config, pool)
    data = None if parts is None else describe(parts)
    memory = sum(r.base_bytes + _ADAM_COPIES * 4 * r.adapter_parameters for r in roles.values())
    memory += activation_bytes(config, known, shapes, itemsizes, parts)
    privacy = build_privacy(config)
    epsilon, delta = (privacy.epsilon(config.federation.rounds), privacy.delta) if privacy else (None, None)
    return Cost(roles, memory, data, note, epsilon, delta)


def _data(config: RunConfig, pool: Pool | None) -> tuple[Split | None, str]:
    """Return the data as a run would split it, or None and why, where it has to come from the hub first."""
    try:
        return split(pool or load_pool(config.task, config.seed), config.task, config.seed), ""
    except UserError as error:
        if config.task.path is not None or "hub" not in str(error):
            raise
        return None, str(error)


def outline(model: ModelConfig, known: BaseModels) -> peft.PeftModel:
    """Return a role's network with its adapter, without storage.

    Args:
        model: base and adapter.
        known: what the modality knows of base models.
    """
    return add_adapter(known.outline(model), model.adapter, causal_lm=known.causal_lm)


def role_cost(
    model: ModelConfig, network: nn.Module, dtype: torch.dtype, uploads: Mapping[str, UploadFormat]
) -> RoleCost:
    """Return a role's size.

    Args:
        model: base and adapter.
        network: its `outline`.
        dtype: of the base.
        uploads: client id to the form that its adapter travels in.
    """
    frozen = parameter_counts(network)[1]
    adapter = {name: tensor.detach() for name, tensor in trainable(network).items()}
    count = sum(tensor.numel() for tensor in adapter.values())
    sent = [adapter_bytes(upload.expected(adapter)) for upload in uploads.values()] or [0]
    mean = sum(sent) // len(sent)
    return RoleCost(model.source, frozen, count, adapter_bytes(adapter), frozen * dtype.itemsize, mean)


def activation_bytes(
    config: RunConfig,
    known: BaseModels,
    shapes: Mapping[str, Any],
    itemsizes: Mapping[str, int],
    parts: Split | None,
) -> int:
    """Return an estimate of what training and scoring keep of their largest batches.

    A client's training keeps the SLM's activations, distillation those of both models; the larger one counts, and what
    scoring takes on top, as an allocator does not give it all back. With weights and libraries it was .9 to 1.3 times
    what processes took (text of 60 to 1000 tokens, free answers of 100, bfloat16).

    Args:
        config: of the run.
        known: what the modality knows of base models.
        shapes: role to the configuration of its base; None for a network without one, which counts as nothing.
        itemsizes: role to bytes of a value of its base.
        parts: the data; None if it is not here.
    """
    private = None if parts is None else [x for part in parts.private.values() for x in part]
    shape = shapes["slm"]

    def largest(examples: Sequence[Any] | None, batch_size: int, scoring: bool = False) -> tuple[int, int]:
        """Return positions and rows of logits of the largest batch."""
        some = examples if examples is not None else [None] * batch_size
        sizes = sorted((known.footprint(x, shape, scoring) for x in some), reverse=True)[:batch_size]
        return sum(positions for positions, _ in sizes), sum(rows for _, rows in sizes)

    client = largest(private, config.client.batch_size)
    public = largest(parts and parts.public, config.server.batch_size)
    scored = largest(parts and parts.test, config.evaluation.batch_size, scoring=True)
    fitting = _training_bytes(shapes["slm"], itemsizes["slm"], *client)
    both = [_training_bytes(shapes[role], itemsizes[role], *public) for role in shapes]
    distilling = sum(both) if "llm" in shapes else 0
    scoring = max(_PASSING * scored[0] * _of(shapes[role], "hidden_size") * itemsizes[role] for role in shapes)
    return round(max(fitting, distilling) + scoring)


def _training_bytes(shape: Any, itemsize: int, positions: int, rows: int) -> float:
    """Return what is kept for the backward pass of a batch with so many positions, and rows of logits."""
    columns = _of(shape, "vocab_size") or _of(shape, "num_labels")
    values = positions * _of(shape, "num_hidden_layers") * _of(shape, "hidden_size") * _KEPT
    return values * itemsize + rows * columns * 4 * _LOGITS


def _of(shape: Any, name: str) -> int:
    """Return a number of a network's configuration; 0 if it has none."""
    return getattr(shape, name, None) or 0
