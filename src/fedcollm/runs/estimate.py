"""Estimate what a run would cost from the models' configurations alone, without training or downloading anything."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.config.augmentation import with_kinds
from fedcollm.config.baselines import changed
from fedcollm.data.audit.profiles import BINS
from fedcollm.data.augmentation.batches import notes as augmentation_notes
from fedcollm.data.catalogue import BaseModels, base_models, build_modality, load_pool
from fedcollm.data.partition import describe, split
from fedcollm.data.pool import Pool, Split
from fedcollm.errors import UserError, in_section
from fedcollm.federation.download_format import download_format
from fedcollm.federation.secagg.fixed_point import STATISTICS
from fedcollm.federation.upload_format import UploadFormat
from fedcollm.messages import Adapter, adapter_bytes
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.style import style_of
from fedcollm.modalities.text.vocabulary import check_tokenizer_files
from fedcollm.models.adapters import resolve_device, resolve_dtype
from fedcollm.models.quantized import BYTES
from fedcollm.models.warm_start import check_start, other_base
from fedcollm.runs.activations import Activations
from fedcollm.runs.batch_memory import activation_bytes, number_of
from fedcollm.runs.build_clients import build_privacy, build_uploads, check_statistics, fixed_point
from fedcollm.runs.lengths import measured_lengths
from fedcollm.runs.memory_limit import LIBRARY_BYTES, fit_memory
from fedcollm.runs.outlines import Outline, outline
from fedcollm.runs.resolve import with_number
from fedcollm.runs.shrink_plan import plan_bases

#: float32 copies of each adapter parameter: its value, its gradient and AdamW's two moments.
_ADAM_COPIES = 4

#: Bytes per d² that the regression on d features takes: XᵀX and its factor in float64, with copies (measured).
_SOLVING = 40


_SERVER = "there is no training data: this is the data of a deployment's server, whose clients have their own"

#: Number of clients that is assumed if it follows from data that would have to be downloaded first.
_CLIENTS = 4


@dataclass(frozen=True)
class RoleCost:
    """Sizes of one role's model.

    Attributes:
        source: where the base comes from.
        base_parameters: number of frozen parameters.
        adapter_parameters: number of trainable parameters, the only ones that travel.
        adapter_bytes: size of what a client receives: the adapter as it is trained or, for a control, its statistics.
        base_bytes: size of the base in memory.
        upload_bytes: size of what a client sends, the mean over clients.
    """

    source: str
    base_parameters: int
    adapter_parameters: int
    adapter_bytes: int
    base_bytes: int
    upload_bytes: int

    @property
    def share(self) -> float:
        """Return the number of adapter parameters as a share of the base's."""
        return self.adapter_parameters / self.base_parameters

    @property
    def upload_share(self) -> float:
        """Return the bytes that a client sends as a share of the base's bytes in memory."""
        return self.upload_bytes / self.base_bytes


@dataclass(frozen=True)
class Cost:
    """What a run would cost.

    Attributes:
        roles: sizes by role: `slm` and, if it is trained, `llm`.
        memory_bytes: estimated size of weights, optimizer states and activations in one process.
        data: how the data would be split; None if it would have to be downloaded first.
        data_note: why `data` is None; empty otherwise.
        epsilon: ε that the whole run would spend; None without differential privacy.
        delta: δ of the same guarantee; None without differential privacy.
        statistics_bytes: size of what each client sends once before round 1, as statistics; 0 without any.
        healed: role to whether the cache holds its healed base already, for bases that the run needs healed.
        lengths: name of a length of an example to its median, its 95th percentile and the longest; empty without data.
        notes: what there is to say of the models.
        fitted: dotted key to the value that it must have so that the run fits into the memory limit.
        limit_bytes: memory that the run's process may take; None without a limit.
    """

    roles: dict[str, RoleCost]
    memory_bytes: int
    data: dict[str, Any] | None
    data_note: str = ""
    epsilon: float | None = None
    delta: float | None = None
    statistics_bytes: int = 0
    healed: Mapping[str, bool] = field(default_factory=dict[str, bool])
    lengths: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    notes: tuple[str, ...] = ()
    fitted: Mapping[str, Any] = field(default_factory=dict[str, Any])
    limit_bytes: int | None = None

    @property
    def limited(self) -> dict[str, Any]:
        """Return the memory limit, the estimate with libraries, and what was changed; nothing without a limit."""
        if self.limit_bytes is None:
            return {}
        estimated = LIBRARY_BYTES + self.memory_bytes
        return {"limit_bytes": self.limit_bytes, "estimated_bytes": estimated, **self.fitted}


def check(
    config: RunConfig, modality: BaseModels | None = None, pool: Pool | None = None, limit_bytes: int | None = None
) -> Cost:
    """Validate a configuration against its models and data.

    Args:
        config: the run's configuration.
        modality: the user's own modality; by default the one of the task that `config.task.name` names.
        pool: the user's own data; by default the data of that task.
        limit_bytes: memory that the run's process may take; None without a limit.

    Raises:
        UserError: the model, the adapter or the data is not usable, with the message that the run would give, or the
            run does not fit into the limit.
    """
    device, known = resolve_device(config.device), modality or base_models(config.task)
    models = {"slm": config.slm} | ({"llm": config.llm} if config.server.epochs else {})
    parts, note = _data(config, pool)
    if config.task.clients is None:
        config = with_number(config, (parts and len(parts.private)) or _CLIENTS)
    named = config.federation.participants
    uploads = build_uploads(config, [str(k) for k in range(config.task.clients or 0)] if named is None else named)
    roles: dict[str, RoleCost] = {}
    shapes: dict[str, Any] = {}
    itemsizes: dict[str, int] = {}
    measured: dict[str, Activations | None] = {}
    notes: list[str] = []
    fitted: dict[str, Any] = {}
    for role, model in models.items():
        with in_section(role):
            dtype, network = resolve_dtype(model.dtype, device), outline(model, known)
            if model.adapter.start is not None:
                check_start(model.adapter, network.adapter)
                other = other_base(model.adapter, *_names(model.source))
                notes += [f"{role}.{other}"] if other else []
            if config.task.is_text and modality is None:
                check_tokenizer_files(model.source, network.shape.vocab_size, style_of(config.task).chat)
        shapes[role], itemsizes[role], measured[role] = network.shape, dtype.itemsize, network.activations
        roles[role] = role_cost(model, network, dtype, uploads)
        if role == "slm" and uploads and config.control is None:
            roles[role] = _as_sent(config, roles[role], network.adapter, len(uploads))
    healed = {role: plan.entry.is_dir() for role, plan in plan_bases(config, modality).items()}
    features, labels = _statistics_size(config, modality, parts, shapes["slm"])
    once = 4 * (features * (features + 1) // 2 + features * labels)
    if config.control is not None:
        roles["slm"] = replace(roles["slm"], adapter_bytes=once, upload_bytes=once if uploads else 0)
        once = 0
    once += 4 * (config.statistics.buckets + BINS) if uploads and config.statistics.buckets else 0
    data, measures = (None, {}) if parts is None else _described(config, modality, parts)
    weights = sum(r.base_bytes + _ADAM_COPIES * 4 * r.adapter_parameters for r in roles.values())

    def needed(one: RunConfig) -> int:
        """Return the memory of a run, given its configuration with other numbers of examples at once."""
        return weights + max(activation_bytes(one, known, shapes, itemsizes, parts, measured), _SOLVING * features**2)

    if limit_bytes is not None:
        fitted = fit_memory(config, needed, limit_bytes)
    memory = needed(changed(config, fitted))
    privacy = build_privacy(config)
    epsilon, delta = (privacy.epsilon(config.federation.rounds), privacy.delta) if privacy else (None, None)
    return Cost(roles, memory, data, note, epsilon, delta, once, healed, measures, tuple(notes), fitted, limit_bytes)


def fit_client(config: RunConfig, parts: Split, limit_bytes: int) -> dict[str, Any]:
    """Return the memory limit of a deployed client, its estimate, and what has to be changed, as `Cost.limited` does.

    Args:
        config: the run's configuration.
        parts: the client's own examples.
        limit_bytes: memory that the client's process may take.

    Raises:
        UserError: the model is not usable, or not even one example at a time fits.
    """
    known, dtype = base_models(config.task), resolve_dtype(config.slm.dtype, resolve_device(config.device))
    network = outline(config.slm, known)
    sizes = role_cost(config.slm, network, dtype, {})

    def needed(one: RunConfig) -> int:
        shapes, itemsizes, measured = {"slm": network.shape}, {"slm": dtype.itemsize}, {"slm": network.activations}
        activations = activation_bytes(one, known, shapes, itemsizes, parts, measured)
        return sizes.base_bytes + _ADAM_COPIES * 4 * sizes.adapter_parameters + activations

    changes = fit_memory(config, needed, limit_bytes, ["slm"])
    estimated = LIBRARY_BYTES + needed(changed(config, changes))
    return {"limit_bytes": limit_bytes, "estimated_bytes": estimated, **changes}


def _names(source: str) -> tuple[str, str]:
    """Return what an adapter's file may call a base."""
    return source, str(Path(source).absolute())


def _described(
    config: RunConfig, modality: BaseModels | None, parts: Split
) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """Return a summary of the data and the lengths of its examples, none if tokenizers are out of reach.

    The lengths are those of the user's own data: those of data that ships with fedcollm are known to fit, and to load a
    tokenizer takes seconds.

    Raises:
        UserError: an example can't be used with these models, or the two models don't fit together.
    """
    private = [example for part in parts.private.values() for example in part]
    section = with_kinds(config.client.augmentation, config.task)
    data = describe(replace(parts, notes=[*parts.notes, *augmentation_notes(section, private)]))
    without = config.control is not None and not config.control.needs_model
    if without or (config.task.path is None and not isinstance(modality, Modality)):
        return data, {}
    try:
        found, notes = measured_lengths(config, modality if isinstance(modality, Modality) else None, parts)
    except UserError as error:
        if "hub" not in str(error):
            raise
        return data, {}
    data["notes"] = [*data["notes"], *notes]
    return data, found


def _data(config: RunConfig, pool: Pool | None) -> tuple[Split | None, str]:
    """Return the data as a run would split it; if it would have to be downloaded first, None and the reason.

    Without training data, it is that of the server of a deployment.
    """
    try:
        pool = pool or load_pool(config.task, config.seed)
        parts = split(pool, config.task, config.seed, private=bool(pool.train))
        return (parts if pool.train else replace(parts, notes=[*parts.notes, _SERVER])), ""
    except UserError as error:
        if config.task.path is not None or "hub" not in str(error):
            raise
        return None, str(error)


def _statistics_size(
    config: RunConfig, modality: BaseModels | None, parts: Split | None, shape: Any
) -> tuple[int, int]:
    """Return the numbers of features d and of labels C of statistics, 0 without any; C is 1 without data."""
    settings = config.statistics.ridge
    if settings is None:
        return 0, 0
    features, labels = settings.columns, 1
    if parts is not None:
        known = (
            modality if isinstance(modality, Modality) else build_modality(config.task, config.slm, config.llm, True)
        )
        check_statistics(config, known, parts.test[0])
        without = {"slm": "constant", "ngrams_slm": "ngrams"}.get(settings.features, settings.features)
        kind = settings.model_copy(update={"features": without})
        (features, labels) = known.evidence(parts.test[:1], kind).size
    if settings.needs_model:
        features = number_of(shape, "hidden_size") + (0 if settings.features == "slm" else features)
    return features, labels


def role_cost(model: ModelConfig, known: Outline, dtype: torch.dtype, uploads: Mapping[str, UploadFormat]) -> RoleCost:
    """Return the sizes of one role's model.

    Args:
        model: configuration of the base and the adapter.
        known: the outline of its network.
        dtype: dtype of the base.
        uploads: client id to the format in which it sends its adapter.
    """
    count = sum(tensor.numel() for tensor in known.adapter.values())
    sent = [adapter_bytes(upload.expected(known.adapter)) for upload in uploads.values()] or [0]
    mean = sum(sent) // len(sent)
    packed = round(known.linear * BYTES[model.quantization]) if model.quantization != "none" else 0
    base_bytes = packed + (known.frozen - (known.linear if packed else 0)) * dtype.itemsize
    return RoleCost(model.source, known.frozen, count, adapter_bytes(known.adapter), base_bytes, mean)


def _as_sent(config: RunConfig, cost: RoleCost, theta: Adapter, clients: int) -> RoleCost:
    """Return the sizes of the SLM with the bytes in the forms in which its adapter travels; see `check`."""
    federation, secure = config.federation, config.federation.secure_aggregation
    down = adapter_bytes(download_format(federation.download, theta).form(theta))
    if not (secure.enabled or secure.simulate_quantization):
        return replace(cost, adapter_bytes=down)
    shapes = {name: tuple(tensor.shape) for name, tensor in theta.items()}
    words = fixed_point(config, clients).words(shapes, 1 if federation.privacy else len(STATISTICS))
    return replace(cost, adapter_bytes=down, upload_bytes=4 * words)
