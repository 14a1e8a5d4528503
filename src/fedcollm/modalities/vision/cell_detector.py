"""A small detector of our own, which learns drawn shapes within a minute of one core: a query per cell of the image.

DETR and YOLOS take hundreds of epochs to learn where each of their queries looks. Here the image is cut into cells, and
each cell's features are the query for an object whose center is in it or near, as in YOLO (Redmon et al., arXiv
1506.02640). The loss is still that of DETR, which matches every object with one query, so that no duplicates need to
be removed; attention between the cells lets them agree which one answers.

The layers that see the pixels are blocks of ConvNeXt (Liu et al., arXiv 2201.03545), and patches are merged as in Swin
(Liu et al., arXiv 2103.14030). Both compute with linear layers but for one convolution per channel, so that an adapter
reaches every stage of the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Height and width of the images, and of a cell, in pixels.
SIDE, CELL = 64, 16

#: Number of cells, which are the queries.
QUERIES = (SIDE // CELL) ** 2

#: Side of the patches that the first stage, of three, starts with, in pixels; each further stage merges 2 x 2.
_PATCH = 4

#: Number of positions of the first stage.
PATCHES = (SIDE // _PATCH) ** 2

#: Width and height of every box before training, as a share of the image.
_FIRST_SIZE = 0.4

_KERNEL, _HEADS = 5, 4


@dataclass
class CellConfig:
    """The size of a cell detector.

    Attributes:
        widths: number of features of the three stages; that of the last one is also that of the queries.
        depths: number of blocks of the first two stages, and of layers of attention between the cells.
        num_labels: number of classes.
        model_type: name of the family.
        id2label: names of the classes, if they are known.
        label2id: the same, the other way round.
    """

    widths: tuple[int, int, int]
    depths: tuple[int, int, int]
    num_labels: int
    model_type: str = "cells"
    id2label: Mapping[int, str] = field(default_factory=dict[int, str])
    label2id: Mapping[str, int] = field(default_factory=dict[str, int])


class Detected(NamedTuple):
    """What a detector answers, named as in transformers: class logits [B, Q, C + 1], and boxes [B, Q, 4]."""

    logits: Tensor
    pred_boxes: Tensor


class CellDetector(nn.Module):
    """A detector for images of `SIDE` x `SIDE` pixels.

    Args:
        config: its size.
    """

    def __init__(self, config: CellConfig):
        super().__init__()
        self.config: CellConfig = config
        (first, second, width), (early, late, layers) = config.widths, config.depths
        self.stages: nn.Sequential = nn.Sequential(
            Merge(3, first, _PATCH),
            *(ConvBlock(first) for _ in range(early)),
            Merge(first, second, 2),
            *(ConvBlock(second) for _ in range(late)),
            Merge(second, width, 2),
        )
        self.first_boxes: Tensor
        self.register_buffer("first_boxes", first_boxes().logit(), persistent=False)
        self.places: nn.Parameter = nn.Parameter(0.02 * torch.randn(QUERIES, width))
        self.layers: nn.Sequential = nn.Sequential(*(Layer(width) for _ in range(layers)))
        self.norm: nn.LayerNorm = nn.LayerNorm(width)
        self.class_labels_classifier: nn.Linear = nn.Linear(width, config.num_labels + 1)
        self.bbox_predictor: nn.Sequential = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))

    def forward(self, pixel_values: Tensor) -> Detected:
        """Return the answer to pixels [B, 3, SIDE, SIDE]."""
        cells = self.stages(pixel_values.permute(0, 2, 3, 1)).flatten(1, 2)  # [B, Q, width]
        queries = self.norm(self.layers(cells + self.places))
        boxes = self.bbox_predictor(queries)
        return Detected(self.class_labels_classifier(queries), (boxes + self.first_boxes).sigmoid())


def first_boxes() -> Tensor:
    """Return [Q, 4], the boxes before training: those around the center of each cell, row by row."""
    centers = (torch.arange(SIDE // CELL) + 0.5) * CELL / SIDE
    places = torch.cartesian_prod(centers, centers).flip(-1)
    return torch.cat([places, torch.full_like(places, _FIRST_SIZE)], dim=-1)


class Merge(nn.Module):
    """Makes one position of each square of positions, [B, H, W, inputs] to [B, H / side, W / side, outputs].

    Args:
        inputs: number of features of a position.
        outputs: that of a merged one.
        side: positions per side of a square.
    """

    def __init__(self, inputs: int, outputs: int, side: int):
        super().__init__()
        self.side: int = side
        self.linear: nn.Linear = nn.Linear(inputs * side * side, outputs)
        self.norm: nn.LayerNorm = nn.LayerNorm(outputs)

    def forward(self, map: Tensor) -> Tensor:
        """Return the merged positions."""
        count, height, width, inputs = map.shape
        side = self.side
        squares = map.reshape(count, height // side, side, width // side, side, inputs).transpose(2, 3)
        return self.norm(self.linear(squares.flatten(3)))


class ConvBlock(nn.Module):
    """ConvNeXt's block, from [B, H, W, width] to the same shape.

    Args:
        width: number of features.
    """

    def __init__(self, width: int):
        super().__init__()
        self.around: nn.Conv2d = nn.Conv2d(width, width, _KERNEL, padding=_KERNEL // 2, groups=width)
        self.norm: nn.LayerNorm = nn.LayerNorm(width)
        self.wide: nn.Linear = nn.Linear(width, 2 * width)
        self.narrow: nn.Linear = nn.Linear(2 * width, width)

    def forward(self, map: Tensor) -> Tensor:
        """Return the features with what each position sees around it."""
        seen = self.around(map.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return map + self.narrow(functional.gelu(self.wide(self.norm(seen))))


class Layer(nn.Module):
    """A transformer layer with the normalization in front, from [B, Q, width] to the same shape.

    Args:
        width: number of features.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm: nn.LayerNorm = nn.LayerNorm(width)
        self.second_norm: nn.LayerNorm = nn.LayerNorm(width)
        self.query: nn.Linear = nn.Linear(width, width)
        self.key: nn.Linear = nn.Linear(width, width)
        self.value: nn.Linear = nn.Linear(width, width)
        self.output: nn.Linear = nn.Linear(width, width)
        self.wide: nn.Linear = nn.Linear(width, 2 * width)
        self.narrow: nn.Linear = nn.Linear(2 * width, width)

    def forward(self, queries: Tensor) -> Tensor:
        """Return the queries after they have seen each other."""
        normed = self.norm(queries)
        parts = (
            part(normed).unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        seen = functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(-2)
        queries = queries + self.output(seen)
        return queries + self.narrow(functional.gelu(self.wide(self.second_norm(queries))))
