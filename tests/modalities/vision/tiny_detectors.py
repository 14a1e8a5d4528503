"""Tiny random detectors of both families, and images with boxes for them."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
)

from fedcollm.modalities.vision.boxes import Box, DetectionExample


def _yolos(labels: int, queries: int) -> nn.Module:
    return YolosForObjectDetection(
        YolosConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=[32, 32],
            patch_size=8,
            num_detection_tokens=queries,
            num_labels=labels,
            use_mid_position_embeddings=False,
        )
    )


def _detr(labels: int, queries: int) -> nn.Module:
    stages = {"hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic", "out_features": ["stage2"]}
    sides = [f"{side}_{what}" for side in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")]
    return DetrForObjectDetection(
        DetrConfig(
            use_timm_backbone=False,
            backbone=None,
            use_pretrained_backbone=False,
            backbone_config=ResNetConfig(embedding_size=8, **stages),
            d_model=16,
            num_queries=queries,
            num_labels=labels,
            **dict(zip(sides, (1, 2, 16) * 2, strict=True)),
        )
    )


#: Name of a family to a function that makes a network with so many classes and queries.
TINY: Mapping[str, Callable[[int, int], nn.Module]] = {"yolos": _yolos, "detr": _detr}

#: How the images of a detector are prepared: scaled to this side, and from 0...255 to -1...1.
PREPARED: Mapping[str, Any] = {
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def save_detector(name: str, place: Path, labels: int = 5, queries: int = 4, seed: int = 0, **prepared: Any) -> str:
    """Write a network with random weights and the preparation of its images; return the directory."""
    torch.manual_seed(seed)
    network: Any = TINY[name](labels, queries)
    with torch.no_grad():
        for parameter in network.parameters():  # larger than usual, so that a tiny network's outputs differ
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    network.save_pretrained(place)
    kind = {"yolos": "YolosImageProcessor", "detr": "DetrImageProcessor"}[name]
    values = {"image_processor_type": kind, **PREPARED, **prepared}
    (place / "preprocessor_config.json").write_text(json.dumps(values), encoding="utf-8")
    return str(place)


def png(width: int = 20, height: int = 10, boxes: tuple[Box, ...] = (), shade: int = 0) -> bytes:
    """Return a gray image with a brighter rectangle for each box."""
    image = Image.new("RGB", (width, height), (shade, shade, shade))
    for box in boxes:
        ImageDraw.Draw(image).rectangle((box.left, box.top, box.right - 1, box.bottom - 1), fill=(200, 90, shade))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def example(*boxes: Box, classes: str = "abc", id: str = "x", shade: int = 0) -> DetectionExample:
    """Return an image of 20 x 10 pixels with boxes."""
    return DetectionExample.read(id, png(boxes=boxes, shade=shade), tuple(classes), boxes)


def write_coco(root: Path, images: int = 24, groups: int = 3) -> Path:
    """Write a directory in the format of COCO: images of noise with one or two bright boxes of the class of their side.

    Returns:
        The directory. Its images are in a folder per group.
    """
    generator = np.random.default_rng(0)
    kinds = [{"id": 7, "name": "left"}, {"id": 3, "name": "right"}]
    rows: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": kinds}
    for number in range(images):
        name = f"ward{number % groups}/{number}.png"
        values = generator.integers(0, 90, (24, 32, 3))
        for right in range(2):
            if number % 4 != right:  # a quarter of the images has only the other one
                left, top = 16 * right + int(generator.integers(0, 6)), int(generator.integers(0, 12))
                values[top : top + 10, left : left + 9] += 140
                box = {"image_id": number, "category_id": (7, 3)[right], "bbox": [left, top, 9, 10]}
                rows["annotations"].append({"id": len(rows["annotations"]), "iscrowd": 0, **box})
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(root / "images" / name)
        rows["images"].append({"id": number, "file_name": name})
    (root / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    return root
