"""Table 2 of FedCoLLM (arXiv 2411.11707): what a client sends in a round, counted on the models' configurations.

Usage: python -m benchmarks.table2

Prints Markdown. The models are built without storage (`fedcollm check` does the same), so nothing is downloaded or
trained. Bytes are those of the adapter's values; beside them is the whole message, with the tensors' names and shapes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fedcollm.config.loading import load_config
from fedcollm.federation.upload_format import UploadFormat
from fedcollm.messages import ClientUpdate
from fedcollm.modalities.text.models import TextModels
from fedcollm.models.adapters import trainable
from fedcollm.runs.estimate import RoleCost, role_cost
from fedcollm.runs.outlines import Outline, network_outline
from fedcollm.transports.wire import encode

#: Preset to the paper's numbers: parameters of the SLM and parameters sent a round, in millions.
PAPER: Mapping[str, tuple[float, float]] = {"gpt2": (124, 0.29), "opt": (1316, 3.15), "llama2": (1345, 3.15)}

#: Share of the whole model's bytes, in float32, that an upload should not exceed.
TARGET = 0.0006


@dataclass(frozen=True)
class Variant:
    """A way to send less.

    Attributes:
        name: in words.
        freeze_a: whether B alone is trained and sent (FFA-LoRA, Sun et al., arXiv 2403.12313).
        dtype: that values travel in.
    """

    name: str
    freeze_a: bool
    dtype: torch.dtype


VARIANTS: Sequence[Variant] = (
    Variant("LoRA in float32", False, torch.float32),
    Variant("LoRA in 16 bits", False, torch.bfloat16),
    Variant("FFA-LoRA in float32", True, torch.float32),
    Variant("FFA-LoRA in 16 bits", True, torch.bfloat16),
)


def cost(preset: str, variant: Variant) -> RoleCost:
    """The SLM's size, its base in float32."""
    config = load_config(preset, **{"slm.adapter.freeze_a": variant.freeze_a})
    network = network_outline(config.slm, TextModels())
    return role_cost(config.slm, Outline.of(network), torch.float32, {"0": UploadFormat(variant.dtype)})


def message_bytes(preset: str, variant: Variant) -> int:
    """Length of the whole update as it travels, of a client with 440 examples."""
    config = load_config(preset, **{"slm.adapter.freeze_a": variant.freeze_a})
    adapter = trainable(network_outline(config.slm, TextModels()))
    values = {name: torch.zeros(tensor.shape, dtype=variant.dtype) for name, tensor in adapter.items()}
    return len(encode(ClientUpdate("0", 1, values, 440, 1.0)))


def parameter_table() -> str:
    """Parameters, as the paper counts them, beside the paper's."""
    lines = ["| SLM | parameters | sent a round | share | paper |", "|---|---|---|---|---|"]
    for preset, (model, sent) in PAPER.items():
        one = cost(preset, VARIANTS[0])
        lines.append(
            f"| {one.source} | {one.base_parameters / 1e6:.0f} M | {one.adapter_parameters / 1e6:.2f} M | "
            f"{one.share:.2%} | {sent} M of {model:.0f} M |"
        )
    return "\n".join(lines)


def byte_table() -> str:
    """Bytes up, a client a round, and their share of the whole model's."""
    lines = [
        "| SLM | a client sends | values | whole message | share of the model in float32 | in 16 bits |",
        "|---|---|---|---|---|---|",
    ]
    for preset in PAPER:
        for variant in VARIANTS:
            one = cost(preset, variant)
            lines.append(
                f"| {one.source} | {variant.name} | {one.upload_bytes / 1e6:.2f} MB | "
                f"{message_bytes(preset, variant) / 1e6:.2f} MB | {one.upload_share:.4%} | {2 * one.upload_share:.4%} |"
            )
    return "\n".join(lines)


def largest_rank(preset: str, variant: Variant) -> int:
    """The largest rank whose values stay within `TARGET`."""
    one, rank = cost(preset, variant), load_config(preset).slm.adapter.rank
    return math.floor(rank * TARGET / one.upload_share)


def main() -> None:
    """Print both tables."""
    smallest = VARIANTS[-1]
    print(f"{parameter_table()}\n\n{byte_table()}\n")
    print(f"Within {TARGET:.2%} of the model in float32, {smallest.name}, by its values:\n")
    for preset in PAPER:
        one, rank = cost(preset, smallest), largest_rank(preset, smallest)
        met = "yes" if one.upload_share <= TARGET else f"no at rank 8, {one.upload_share:.4%}"
        print(f"- {one.source}: {met}; the largest such rank is {rank}")


if __name__ == "__main__":
    main()
