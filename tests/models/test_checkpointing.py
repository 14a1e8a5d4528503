"""Gradient checkpointing: the same gradients, bit for bit, and fewer tensors that wait for the backward pass."""

import pytest
import torch
from tests.conftest import tiny_llama
from tests.parties import add_adapter
from torch import nn

from fedcollm.errors import UserError
from fedcollm.models.checkpointing import recompute_layers
from fedcollm.models.fused.attention import GROUPED
from fedcollm.models.fused.patch import fuse

TOKENS = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 9]])


def step(recomputed: bool, fused: bool, **adapter) -> tuple[list[torch.Tensor], int]:
    """The gradients of one step, and the bytes that waited for its backward pass."""
    network = tiny_llama()
    network.set_attn_implementation(GROUPED)
    model = add_adapter(network, seed=3, rank=4, **adapter)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.1)
    if fused:
        fuse(model)
    if recomputed:
        recompute_layers(model)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    model.train()
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(TOKENS, labels=TOKENS, use_cache=False).loss
    loss.backward()
    return [p.grad for p in model.parameters() if p.requires_grad], sum(kept.values())


@pytest.mark.parametrize(("fused", "adapter"), [(True, {}), (False, {}), (True, {"dropout": 0.5})])
def test_gradients_are_the_same_bits_and_less_is_kept(fused, adapter):
    (plain, kept), (recomputed, kept_less) = step(False, fused, **adapter), step(True, fused, **adapter)
    assert len(plain) == len(recomputed) > 0
    assert all(torch.equal(one, other) for one, other in zip(plain, recomputed, strict=True))
    assert any(gradient.abs().sum() > 0 for gradient in plain)
    assert kept_less < 0.7 * kept


def test_network_without_such_layers_is_refused():
    class Bare(nn.Linear):
        def get_base_model(self):
            return self

    with pytest.raises(UserError, match="gradient_checkpointing: Bare has no layers"):
        recompute_layers(Bare(1, 1))
