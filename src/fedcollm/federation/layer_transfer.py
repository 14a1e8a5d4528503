"""From an SLM that was cut from the LLM into the layers of the LLM that it was cut from.

The other way round, Offsite-Tuning (Xiao et al., arXiv 2302.04870) and FedBiOT (Wu et al., arXiv 2406.17706) tune an
adapter on a model with layers dropped and plug it into the whole one. Here both models have adapters of their own, so
that what moves is the clients' mean change of A and of B, layer by layer. It means the same in both models as far as
their A and B are alike: they start alike (`init_from_slm`).
"""

import re
from collections.abc import Sequence

from fedcollm.messages import Adapter

#: The first number in a name: `.layers.3.` of most families, `.h.3.` of GPT-2.
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def in_llm(name: str, kept: Sequence[int]) -> str:
    """The LLM's tensor that a tensor of the SLM stands for.

    Args:
        name: of a tensor of the SLM's adapter.
        kept: index in the LLM of every layer of the SLM.

    >>> in_llm("model.layers.1.mlp.up_proj.lora_A.weight", [0, 3, 5])
    'model.layers.3.mlp.up_proj.lora_A.weight'
    """
    return _LAYER.sub(lambda match: str(kept[int(match.group())]), name, count=1)


def init_from_slm(llm: Adapter, slm: Adapter, kept: Sequence[int]) -> Adapter:
    """ω with the SLM's values in the layers that the SLM has, as both should start."""
    return llm | {in_llm(name, kept): tensor.clone() for name, tensor in slm.items()}


def apply_delta(llm: Adapter, before: Adapter, after: Adapter, kept: Sequence[int], share: float = 1.0) -> Adapter:
    """ω plus a share of the change from θ to the clients' mean, in the layers that the SLM has.

    Args:
        llm: ω.
        before: θ, as it was broadcast.
        after: mean of what came back.
        kept: index in the LLM of every layer of the SLM.
        share: of the change.
    """
    moved = {in_llm(name, kept): share * (after[name] - before[name]) for name in after}
    return llm | {name: llm[name] + change for name, change in moved.items()}
