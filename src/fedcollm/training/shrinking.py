"""Choose the layers and the MLP neurons of a transformer to keep, by what they do to a text.

Each choice of layers is a row of `LAYER_CHOICES` in `config/choices.py`, under the same name.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from fedcollm.errors import SECTION, UserError
from fedcollm.modalities.base import Modality
from fedcollm.models.pruning import edge_layers, even_layers, gated_mlps, layer_count, neurons_to_keep, only_layers
from fedcollm.progress import track
from fedcollm.training.divergences import divergence


def even(modality: Modality, model: Any, batches: Sequence[Any], keep: int) -> list[int]:
    """Return evenly spread layers; the text does not matter."""
    return even_layers(layer_count(model), keep)


def edges(modality: Modality, model: Any, batches: Sequence[Any], keep: int) -> list[int]:
    """Return the first three tenths of the kept layers from the front, at least one, and the others from the end.

    The text does not matter. For 10 of the 30 layers of SmolLM2-135M, this gave the best SLM after healing
    (docs/results.md).
    """
    total = layer_count(model)
    even_layers(total, keep)  # refuses a number that can't be kept
    return edge_layers(total, keep)[max(1, round(0.3 * keep))]


def block(modality: Modality, model: Any, batches: Sequence[Any], keep: int) -> list[int]:
    """Return the layers around the contiguous block that the next-token distributions need least.

    Gromov et al. (arXiv 2403.17887) leave out the block whose input and output are most similar. Here, the measure is
    KL(whole ‖ cut) on a text, over every place for the block.
    """
    with torch.inference_mode():
        whole = [modality.logits(model, batch) for batch in batches]
    candidates = edge_layers(layer_count(model), keep)
    costs: list[float] = []
    for layers in track(candidates, "choosing layers", total=len(candidates)):
        with only_layers(model, layers), torch.inference_mode():
            parts = [divergence(w, modality.logits(model, b)) for w, b in zip(whole, batches, strict=True)]
        costs.append(torch.stack(parts).mean().item())
    return candidates[costs.index(min(costs))]


def influence(modality: Modality, model: Any, batches: Sequence[Any], keep: int) -> list[int]:
    """Return the layers that turn their input most: block influence, 1 − cos(input, output), of ShortGPT.

    Source: Men et al., arXiv 2403.03853, eq. 1, as a mean over tokens.

    Raises:
        UserError: what goes into the layers and what comes out of them can't be compared, or `keep` is too large.
    """
    even_layers(layer_count(model), keep)  # refuses a number that can't be kept
    with torch.inference_mode():
        turns = torch.stack([_turns(model, batch) for batch in batches]).mean(0)
    chosen: list[int] = cast(Any, turns.topk(keep).indices).tolist()
    return sorted(chosen)


LAYER_CHOICES: Mapping[str, Callable[[Modality, Any, Sequence[Any], int], list[int]]] = {
    "even": even,
    "edges": edges,
    "block": block,
    "influence": influence,
}


def _turns(model: Any, batch: Any) -> Tensor:
    """Return [L], 1 − cos(input, output) of every layer, as a mean over the tokens of a batch."""
    inputs = {name: tensor.to(model.device) for name, tensor in batch.inputs.items()}
    states = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states  # L + 1 times [B, N, H]
    seen = inputs["attention_mask"].bool()
    if len(states) != layer_count(model) + 1 or any(
        state.shape != (*seen.shape, states[0].shape[-1]) for state in states
    ):
        raise UserError(
            f"{SECTION}layer_choice: influence compares what goes into a layer with what comes out of it, and those of "
            f"{type(model).__name__} have different forms. Set {SECTION}layer_choice: block, or even."
        )
    pairs = itertools.pairwise(states)
    cosines = [functional.cosine_similarity(a[seen].float(), b[seen].float(), dim=-1).mean() for a, b in pairs]
    return 1 - torch.stack(cosines)


def neurons(modality: Modality, model: Any, batches: Sequence[Any], share: float) -> list[Tensor]:
    """Return, for every gated MLP, the indices of its most important neurons, in ascending order.

    The importance of a neuron is its mean absolute activation on a text times the norm of its outgoing weights: the
    activation-based measure of Minitron (Muralidharan et al., arXiv 2407.14679, section 2.2), scaled by what it can do.
    """
    mlps = gated_mlps(model)
    sums = [torch.zeros(mlp.down_proj.in_features) for mlp in mlps]

    def added(total: Tensor, module: Any, args: tuple[Tensor]) -> None:
        total.add_(args[0].detach().float().abs().flatten(0, -2).sum(0).cpu())

    hooks = [m.down_proj.register_forward_pre_hook(partial(added, t)) for m, t in zip(mlps, sums, strict=True)]
    try:
        with torch.inference_mode():
            for batch in batches:
                modality.logits(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    norms = [mlp.down_proj.weight.detach().float().norm(dim=0).cpu() for mlp in mlps]
    return [neurons_to_keep(total * norm, share) for total, norm in zip(sums, norms, strict=True)]
