"""Tiny random image classifiers of seven architectures, for images of 32 x 32 pixels."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

_TRANSFORMER = {"patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_SWIN = {"patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}


def _of(network: Callable[[Any], nn.Module], config: Callable[..., Any], **shape: Any) -> Callable[[int], nn.Module]:
    return lambda labels: network(config(num_labels=labels, num_channels=3, **shape))


#: Name of an architecture to a function that makes a network with this many classes.
TINY: Mapping[str, Callable[[int], nn.Module]] = {
    "vit": _of(ViTForImageClassification, ViTConfig, image_size=32, intermediate_size=16, **_TRANSFORMER),
    "deit": _of(DeiTForImageClassificationWithTeacher, DeiTConfig, image_size=32, intermediate_size=16, **_TRANSFORMER),
    "swin": _of(SwinForImageClassification, SwinConfig, image_size=32, **_SWIN),
    "convnext": _of(
        ConvNextForImageClassification,
        ConvNextConfig,
        image_size=32,
        patch_size=4,
        hidden_sizes=[8, 12],
        depths=[1, 1],
        num_stages=2,
    ),
    "mobilenet": _of(
        MobileNetV2ForImageClassification,
        MobileNetV2Config,
        image_size=32,
        depth_multiplier=0.1,
        min_depth=4,
        depth_divisible_by=4,
        finegrained_output=False,
    ),
    "resnet": _of(
        ResNetForImageClassification,
        ResNetConfig,
        embedding_size=8,
        hidden_sizes=[8, 12],
        depths=[1, 1],
        layer_type="basic",
    ),
    "efficientnet": _of(
        EfficientNetForImageClassification,
        EfficientNetConfig,
        image_size=32,
        width_coefficient=0.1,
        depth_coefficient=0.1,
        hidden_dim=128,
    ),
}

#: How the images of a classifier are prepared: scaled to this side, and from 0...255 to -1...1.
PREPARED: Mapping[str, Any] = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def save_classifier(name: str, place: Path, labels: int = 5, seed: int = 0, **prepared: Any) -> str:
    """Write a network with random weights and the preparation of its images; return the directory."""
    torch.manual_seed(seed)
    network: Any = TINY[name](labels)
    with torch.no_grad():
        for parameter in network.parameters():  # larger than usual, so that a tiny network's outputs differ
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    network.save_pretrained(place)
    (place / "preprocessor_config.json").write_text(json.dumps({**PREPARED, **prepared}), encoding="utf-8")
    return str(place)
