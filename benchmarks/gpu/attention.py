"""Part `nan`: where torch's fused attention gives values that are not finite, by columns, mask and implementation.

pytorch/pytorch#196678: the backward pass of cuDNN's attention gives NaN where a mask is passed, the columns are 64
modulo 128, and a row's log-sum-exp is below about -88.7.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from benchmarks.gpu.device import device
from benchmarks.gpu.networks import TITLES, with_models
from benchmarks.gpu.speed import POOLS, TINY_POOL
from benchmarks.speed.material import SHARED, configuration, drawn_for, our_model, task_of
from fedcollm.data.sources.professions import load_professions
from fedcollm.modalities.text.forward import _additive_mask, _causal
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.models.fused.patch import unfused

#: Name to torch's implementation; None: its own choice.
BACKENDS = {
    "default": None,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
COLUMNS = (63, 64, 65, 96, 128, 192, 193, 320, 704)


def cases(tiny: bool) -> list[dict[str, Any]]:
    """Return the check of attention alone, which needs no weights, and that of a whole model."""
    alone = {"part": "nan", "title": "gradients of attention alone", "run": "benchmarks.gpu.attention:gradients"}
    whole = {"part": "nan", "title": "a model under five masks", "run": "benchmarks.gpu.attention:masks"}
    if tiny:
        models = {"llm": "tiny-3", "slm": "tiny-3", "data": "icd10", "pool": TINY_POOL}
        return [alone | {"columns": COLUMNS[:2]}, whole | models]
    models = {"llm": "smollm2-30", "slm": "smollm2-30", "data": "icd10", "pool": POOLS["icd10"]}
    return [alone | {"columns": COLUMNS}, whole | models | {"mmlu": True, "needs": ["../shared/data/mmlu"]}]


def gradients(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one record: what is not finite, of which columns, padding, mask and implementation, and how many were."""
    torch.manual_seed(0)
    results = [
        {"columns": columns, "padding": padding, "mask": name, "backend": backend, **_gradient(columns, mask, backend)}
        for columns, padding in itertools.product(case["columns"], (0, 4))
        for name, mask in _small_masks(columns, padding).items()
        for backend in _backends()
    ]
    wrong = [result for result in results if result.get("bad") or result.get("output_finite") is False]
    yield {"checked": len(results), "wrong": wrong, "errors": [result for result in results if "error" in result]}


def _backends() -> dict[str, SDPBackend | None]:
    return BACKENDS if torch.cuda.is_available() else {name: BACKENDS[name] for name in ("default", "math")}


def _small_masks(columns: int, padding: int) -> dict[str, Tensor | None]:
    """Return every way to hide the padding of one of four sequences; None: causal, without a mask."""
    mask = torch.ones(4, columns, dtype=torch.bool, device=device())
    mask[0, :padding] = False
    seen = _causal(mask)
    hidden, lowest = (~seen)[:, None].to(torch.bfloat16), torch.finfo(torch.bfloat16).min
    return {
        "ours (a quarter of the lowest)": _additive_mask(seen, torch.bfloat16),
        "lowest": hidden * lowest,
        "-1e4": hidden * -1e4,
        "-80": hidden * -80,
        "-inf": torch.zeros_like(hidden).masked_fill(~seen[:, None], -math.inf),
        "bool": seen[:, None],
        "none, causal": None,
    }


def _gradient(columns: int, mask: Tensor | None, backend: str) -> dict[str, Any]:
    """Return how many gradients of q, k and v are not finite, and whether the output is; or why there are none."""
    q, k, v = (
        torch.randn(4, 9, columns, 64, device=device(), dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    try:
        with chosen(backend):
            output = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
            output.backward(torch.randn_like(output))
    except RuntimeError as error:
        return {"error": str(error)[:80]}
    counts = {n: int((~t.grad.isfinite()).sum()) for n, t in zip("qkv", (q, k, v), strict=True) if t.grad is not None}
    return {"bad": {n: count for n, count in counts.items() if count}, "output_finite": _finite(output)}


def chosen(backend: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which torch takes an implementation of `BACKENDS`."""
    kind = BACKENDS[backend]
    return contextlib.nullcontext() if kind is None else sdpa_kernel(kind)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def masks(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one record: a batch of two long texts, one of middle length and one short one, by every mask and path."""
    config = configuration(with_models(case, attention="sdpa"))
    task = task_of(config)
    texts = sorted(_texts(case), key=task.size)
    batch = task.collate([texts[-1], texts[-2], texts[len(texts) // 2], texts[0]])
    model = our_model(config, "slm", task)
    shapes = {name: tensor.shape for name, tensor in read_adapter(model).items()}
    write_adapter(
        model, {n: torch.randn(s, generator=torch.Generator().manual_seed(len(n))) * 0.02 for n, s in shapes.items()}
    )
    model.train()
    results = [
        {"layers": layers, "mask": name, "backend": backend, **_model_step(model, batch, mask, backend, layers)}
        for layers in ("fused", "unfused")
        for name, mask in _model_masks(batch.inputs["attention_mask"].to(device())).items()
        for backend in _backends()
    ]
    wrong = [result for result in results if not all(value for name, value in result.items() if "finite" in name)]
    lengths = batch.inputs["attention_mask"].sum(1).tolist()
    yield {
        "model": TITLES[case["slm"]],
        "lengths": lengths,
        "checked": len(results),
        "wrong": wrong,
        "results": results,
    }


def _texts(case: dict[str, Any]) -> list[Any]:
    if case.get("mmlu"):
        return list(load_professions(SHARED / "data").train)
    return list(drawn_for(with_models(case)).private["0"])


def _model_masks(mask: Tensor) -> dict[str, Tensor]:
    """Return every form of a mask of padding, [B, N], that transformers takes."""
    seen, dtype = _causal(mask.bool()), torch.bfloat16
    return {
        "two-dimensional, transformers' own": mask,
        "bool": seen[:, None],
        "lowest": (~seen)[:, None].to(dtype) * torch.finfo(dtype).min,
        "ours (a quarter of the lowest)": _additive_mask(seen, dtype),
        "-inf": torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -math.inf)[:, None],
    }


def _model_step(model: Any, batch: Any, mask: Tensor, backend: str, layers: str) -> dict[str, Any]:
    """Return the loss of one step, and what of it is finite; or why it can't be computed."""
    inputs = {name: tensor.to(device()) for name, tensor in batch.inputs.items()} | {"attention_mask": mask}
    rows, targets = batch.rows.to(device()), batch.targets.to(device())
    kept = torch.arange(-rows.shape[1], 0, device=device())
    model.zero_grad(set_to_none=True)
    try:
        with chosen(backend), contextlib.nullcontext() if layers == "fused" else unfused(model):
            output = model(**inputs, use_cache=False, logits_to_keep=kept).logits
            loss = cross_entropy(output[rows].float(), targets)
            loss.backward()
    except RuntimeError as error:
        return {"error": str(error)[:160]}
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return {
        "loss": float(loss.detach()),
        "logits_finite": _finite(output[rows]),
        "padding_finite": _finite(output),
        "gradients_finite": all(map(_finite, gradients)),
    }
