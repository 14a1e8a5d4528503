"""What a configuration would cost, from the models' configurations alone: nothing is trained or downloaded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, ViTForImageClassification

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.data.catalogue import is_text, load_pool
from fedcollm.data.partition import describe, split
from fedcollm.errors import UserError
from fedcollm.federation.upload_format import UploadFormat
from fedcollm.messages import Adapter, adapter_bytes
from fedcollm.modalities.base import Split
from fedcollm.modalities.text.task import TextExample
from fedcollm.models.adapters import add_adapter, parameter_counts, resolve_device, resolve_dtype, trainable
from fedcollm.models.pretrained import even_layers, load_config
from fedcollm.runs.build import build_privacy, build_uploads
from fedcollm.runs.build_models import VISION_MODELS, vision_config

_ADAM_COPIES = 4  # value, gradient and AdamW's two moments, all float32

# What a process takes in training, fitted to what the embedded pair took with prompts of 60 to 1000 tokens:
_KEPT = 30  # values of hidden size that a layer keeps for its backward pass, a token
_PASSING = 60  # the same of the one layer that is at work when nothing is kept, as in scoring
_LOGITS = 4.5  # float32 copies of a row of logits
_UTF8_A_TOKEN = 4  # bytes of text
_UNKNOWN = 64, 4  # tokens of an example that is not here, and of its answer


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


def check(config: RunConfig) -> Cost:
    """Validate a configuration against its models and data.

    Raises:
        UserError: a model, adapter or data error, as the run itself would give it.
    """
    device = resolve_device(config.device)
    models = {"slm": config.slm} | ({"llm": config.llm} if config.server.epochs else {})
    named = config.federation.participants
    uploads = build_uploads(config, [str(k) for k in range(config.task.clients)] if named is None else named)
    roles, shapes, itemsizes = {}, {}, {}
    for role, model in models.items():
        dtype = resolve_dtype(model.dtype, device)
        shapes[role], itemsizes[role] = _shape(model), dtype.itemsize
        roles[role] = role_cost(model, is_text(config.task.name), dtype, uploads)
    parts, note = _data(config)
    data = None if parts is None else describe(parts)
    memory = sum(r.base_bytes + _ADAM_COPIES * 4 * r.adapter_parameters for r in roles.values())
    memory += activation_bytes(config, shapes, itemsizes, parts)
    privacy = build_privacy(config)
    epsilon, delta = (privacy.epsilon(config.federation.rounds), privacy.delta) if privacy else (None, None)
    return Cost(roles, memory, data, note, epsilon, delta)


def _data(config: RunConfig) -> tuple[Split | None, str]:
    """The data as a run would split it, or none and why, where it has to come from the hub first."""
    try:
        return split(load_pool(config.task, config.seed), config.task, config.seed), ""
    except UserError as error:
        if config.task.path is not None or "hub" not in str(error):
            raise
        return None, str(error)


def role_cost(model: ModelConfig, text: bool, dtype: torch.dtype, uploads: Mapping[str, UploadFormat]) -> RoleCost:
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
    shapes = resources.files("fedcollm.config") / "presets" / "architectures.json"
    known = json.loads(shapes.read_text(encoding="utf-8"))
    shape = AutoConfig.for_model(**known[model.source]) if model.source in known else load_config(model.source)
    if model.layers is not None:
        kept = even_layers(shape.num_hidden_layers, model.layers)
        if getattr(shape, "layer_types", None):
            shape.layer_types = [shape.layer_types[i] for i in kept]
        shape.num_hidden_layers = model.layers
    return shape


def activation_bytes(
    config: RunConfig, shapes: Mapping[str, Any], itemsizes: Mapping[str, int], parts: Split | None
) -> int:
    """Estimate of what training and scoring keep of their largest batches.

    A client's training keeps the SLM's activations, distillation those of both models; the larger one counts, and what
    scoring takes on top, as an allocator does not give it all back. With weights and libraries it was .9 to 1.3 times
    what processes took (text of 60 to 1000 tokens, free answers of 100, bfloat16).

    Args:
        config: of the run.
        shapes: role to the configuration of its base.
        itemsizes: role to bytes of a value of its base.
        parts: the data; None if it is not here.
    """
    private = None if parts is None else [x for part in parts.private.values() for x in part]
    client = _largest(private, config.client.batch_size, shapes["slm"])
    public = _largest(parts and parts.public, config.server.batch_size, shapes["slm"])
    scored = _largest(parts and parts.test, config.evaluation.batch_size, shapes["slm"], all_choices=True)
    fitting = _training_bytes(shapes["slm"], itemsizes["slm"], *client)
    both = [_training_bytes(shapes[role], itemsizes[role], *public) for role in shapes]
    distilling = sum(both) if "llm" in shapes else 0
    scoring = max(_PASSING * scored[0] * shapes[role].hidden_size * itemsizes[role] for role in shapes)
    return round(max(fitting, distilling) + scoring)


def _training_bytes(shape: Any, itemsize: int, tokens: int, rows: int) -> float:
    """Kept for the backward pass of a batch with so many tokens, and rows of logits."""
    width = shape.vocab_size if hasattr(shape, "vocab_size") else shape.num_labels
    return tokens * shape.num_hidden_layers * shape.hidden_size * _KEPT * itemsize + rows * width * 4 * _LOGITS


def _largest(examples: Sequence[Any] | None, batch_size: int, shape: Any, all_choices: bool = False) -> tuple[int, int]:
    """Tokens and rows of logits of the largest batch, estimated: no tokenizer is asked."""
    if examples is None:
        return batch_size * _UNKNOWN[0], batch_size * _UNKNOWN[1]
    sizes = sorted((_size(example, shape, all_choices) for example in examples), reverse=True)[:batch_size]
    return sum(tokens for tokens, _ in sizes), sum(rows for _, rows in sizes)


def _size(example: Any, shape: Any, all_choices: bool) -> tuple[int, int]:
    """Tokens (or patches) of an example, and its rows of logits."""
    if not isinstance(example, TextExample):
        return (shape.image_size // shape.patch_size) ** 2 + 1, 1
    choices = [_tokens(choice) for choice in example.choices]
    read = min(_tokens(example.prompt), getattr(shape, "max_position_embeddings", 1_000_000))
    return read + (sum(choices) if all_choices else max(choices)), max(choices)


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // _UTF8_A_TOKEN)
