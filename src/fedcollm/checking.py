"""What a configuration would cost, from the models' configurations alone: nothing is trained or downloaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, ViTForImageClassification

from fedcollm.build import build_privacy, build_uploads
from fedcollm.build_models import VISION_MODELS, vision_config
from fedcollm.config import ModelConfig, RunConfig
from fedcollm.errors import UserError
from fedcollm.federation.uploads import Upload
from fedcollm.messages import Adapter, adapter_bytes
from fedcollm.models import add_adapter, parameter_counts, resolve_device, resolve_dtype, trainable
from fedcollm.pretrained import even_layers, load_config
from fedcollm.tasks.catalogue import is_text, load_pool
from fedcollm.tasks.partition import describe, split

_ADAM_COPIES = 4  # value, gradient and AdamW's two moments, all float32


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
        memory_bytes: estimate of weights, optimiser states and activations in one process.
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


def check(config: RunConfig) -> Cost:
    """Validate a configuration against its models and data.

    Raises:
        UserError: a model, adapter or data error, as the run itself would give it.
    """
    device = resolve_device(config.device)
    models = {"slm": config.slm} | ({"llm": config.llm} if config.server.epochs else {})
    named = config.federation.participants
    uploads = build_uploads(config, [str(k) for k in range(config.task.clients)] if named is None else named)
    roles, activations = {}, 0
    for role, model in models.items():
        dtype = resolve_dtype(model.dtype, device)
        roles[role] = role_cost(model, is_text(config.task.name), dtype, uploads)
        activations = max(activations, _activation_bytes(_shape(model), config))
    memory = sum(r.base_bytes + _ADAM_COPIES * 4 * r.adapter_parameters for r in roles.values()) + activations
    try:
        data, note = describe(split(load_pool(config.task, config.seed), config.task, config.seed)), ""
    except UserError as error:
        if config.task.path is not None or "hub" not in str(error):
            raise
        data, note = None, str(error)
    privacy = build_privacy(config)
    epsilon, delta = (privacy.epsilon(config.federation.rounds), privacy.delta) if privacy else (None, None)
    return Cost(roles, memory, data, note, epsilon, delta)


def role_cost(model: ModelConfig, text: bool, dtype: torch.dtype, uploads: Mapping[str, Upload]) -> RoleCost:
    """A role's size.

    Args:
        model: base and adapter.
        text: whether it is a causal language model, else an image classifier.
        dtype: of the base.
        uploads: client id to the form that its adapter travels in.
    """
    frozen, adapter = outline(model, text)
    count = sum(tensor.numel() for tensor in adapter.values())
    sent = [adapter_bytes(upload.expected(adapter)) for upload in uploads.values()] or [0]
    mean = sum(sent) // len(sent)
    return RoleCost(model.source, frozen, count, adapter_bytes(adapter), frozen * dtype.itemsize, mean)


def outline(model: ModelConfig, text: bool) -> tuple[int, Adapter]:
    """Parameters of the frozen base, and the adapter's tensors, on a model without storage."""
    shape = _shape(model)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(shape) if text else ViTForImageClassification(shape)
    network = add_adapter(base, **dict(model.adapter), causal_lm=text)
    return parameter_counts(network)[1], {name: tensor.detach() for name, tensor in trainable(network).items()}


def _shape(model: ModelConfig) -> Any:
    """The base's configuration after depth pruning."""
    if model.source in VISION_MODELS:
        return vision_config(model.source)
    known = json.loads((resources.files("fedcollm") / "presets" / "architectures.json").read_text())
    shape = AutoConfig.for_model(**known[model.source]) if model.source in known else load_config(model.source)
    if model.layers is not None:
        kept = even_layers(shape.num_hidden_layers, model.layers)
        if getattr(shape, "layer_types", None):
            shape.layer_types = [shape.layer_types[i] for i in kept]
        shape.num_hidden_layers = model.layers
    return shape


def _activation_bytes(shape: Any, config: RunConfig) -> int:
    """Activations of one training step: about 30 hidden-sized float32 values a token and layer, 64 tokens."""
    rows = max(config.client.batch_size, config.server.batch_size) * 64
    hidden = shape.hidden_size
    return rows * shape.num_hidden_layers * hidden * 30 * 4
