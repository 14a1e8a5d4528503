"""Layer transfer: carry the clients' change over from the SLM to the LLM, whose layers the SLM was cut from.

Offsite-Tuning (Xiao et al., arXiv 2302.04870) and FedBiOT (Wu et al., arXiv 2406.17706) tune an adapter on a model with
dropped layers, and plug it into the whole model. Here, each model has an adapter of its own, and the clients' mean
change of A and of B is transferred, layer by layer. The change means the same in both models as long as their A and B
are alike, which they are at the start (`init_from_slm`).
"""

import re
from collections.abc import Sequence

from fedcollm.messages import Adapter

#: The first number in a tensor's name: 3 in `.layers.3.` of most model families, and in `.h.3.` of GPT-2.
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def in_llm(name: str, kept: Sequence[int]) -> str:
    """Return the name of the LLM's tensor that corresponds to a tensor of the SLM.

    Args:
        name: the name of a tensor of the SLM's adapter.
        kept: the index in the LLM of every layer of the SLM.

    >>> in_llm("model.layers.1.mlp.up_proj.lora_A.weight", [0, 3, 5])
    'model.layers.3.mlp.up_proj.lora_A.weight'
    """
    return _LAYER.sub(lambda match: str(kept[int(match.group())]), name, count=1)


def init_from_slm(llm: Adapter, slm: Adapter, kept: Sequence[int]) -> Adapter:
    """Return ω with the values of θ in the layers of the SLM, so that both adapters start alike.

    Args:
        llm: ω.
        slm: θ.
        kept: the index in the LLM of every layer of the SLM.
    """
    return llm | {in_llm(name, kept): tensor.clone() for name, tensor in slm.items()}


def apply_delta(llm: Adapter, before: Adapter, after: Adapter, kept: Sequence[int], share: float = 1.0) -> Adapter:
    """Return ω plus a share of the change of θ in a round, in the layers of the SLM.

    Args:
        llm: ω.
        before: θ, as it was broadcast.
        after: θ after aggregation.
        kept: the index in the LLM of every layer of the SLM.
        share: the factor of the change.
    """
    moved = {in_llm(name, kept): share * (after[name] - before[name]) for name in after}
    return llm | {name: llm[name] + change for name, change in moved.items()}
