"""A LoRA that tells whether a word occurs in a text: the attacker's part of `benchmarks/word_oracle.py`."""

from typing import Any

import torch
from torch import Tensor

from fedcollm.messages import Adapter
from fedcollm.models.fused.patch import unfused


def gate(theta: Adapter, direction: Tensor, size: float = 1e11) -> Adapter:
    """θ whose first MLP overflows where its input has a positive product with a direction.

    One neuron of the gate and up projections gets a multiple of this product: silu(g x) · (u x) is beyond all floats if
    the product is positive, and zero, with a gradient of zero, if it is negative: the neuron is then switched off.
    """
    made = {name: tensor.clone() for name, tensor in theta.items()}
    for name, tensor in made.items():
        if "layers.0.mlp.gate_proj" in name or "layers.0.mlp.up_proj" in name:
            if "lora_A" in name:
                tensor[0] = size * direction / direction.norm()
            else:
                tensor[:, 0] = 0.0
                tensor[0, 0] = size
    return made


def direction(parties: Any, token: int) -> Tensor:
    """What separates the inputs of the first MLP at one token from those at all others, on texts that are public.

    The texts of ICD-10-CM are public, so that the attacker knows all of them, but not who holds which.
    """
    inputs: list[Tensor] = []
    module = next(m for name, m in parties.slm.named_modules() if name.endswith("layers.0.mlp"))
    texts = [parties.modality.encoded(one) for own in (*parties.examples.values(), parties.parts.public) for one in own]
    with unfused(parties.slm), torch.inference_mode(), parties.slm.disable_adapter():
        hook = module.register_forward_pre_hook(lambda _, given: inputs.append(given[0][0].float()))
        for text in texts:
            parties.slm(torch.tensor([text.prompt]), use_cache=False)
        hook.remove()
    x = torch.cat(inputs).double()  # [tokens, width]
    is_word = torch.tensor([one == token for text in texts for one in text.prompt])
    wanted = torch.where(is_word, 1.0, -1.0).double()
    weight = torch.where(is_word, 0.5 / is_word.sum(), 0.5 / (~is_word).sum()).sqrt().double()[:, None]
    scaled, ridge = x * weight, 1e-4 * x.square().mean() * torch.eye(x.shape[1], dtype=torch.double)
    return torch.linalg.solve(scaled.T @ scaled + ridge, scaled.T @ (wanted[:, None] * weight))[:, 0].float()


def variants(theta: Adapter, toward: Tensor) -> dict[str, Adapter]:
    """θ that a client must refuse, or train with, by the limits of its configuration."""
    spread = gate(theta, toward, 900.0)
    for name, tensor in spread.items():
        if "layers.0.mlp.gate_proj.lora_B" in name or "layers.0.mlp.up_proj.lora_B" in name:
            tensor[:, 0] = 900.0
    return {
        "overflows (values of 1e11)": gate(theta, toward),
        "values within, norm beyond (900 in every neuron)": spread,
        "within both (900 in one neuron)": gate(theta, toward, 900.0),
        "not finite": {name: tensor * torch.inf for name, tensor in theta.items()},
    }
