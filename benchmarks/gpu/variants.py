"""Part `variants`: one training step on one fixed batch by many paths, as it runs and as a CUDA graph.

A step is forward, loss, backward and AdamW; nothing is collated and nothing is read back.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.gpu import paths
from benchmarks.gpu.compiled import layers_compiled, pointwise_compiled
from benchmarks.gpu.device import best_seconds, clear, device, peak_bytes_of
from benchmarks.gpu.networks import TITLES, with_models
from benchmarks.gpu.paths import VARLEN, Forms
from benchmarks.gpu.speed import POOLS, TINY_POOL
from benchmarks.speed.material import (
    SMOLLM2,
    configuration,
    drawn_for,
    needs,
    our_model,
    sequences,
    task_of,
    useful_operations,
)
from fedcollm.config import ClientConfig
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.models.fused.patch import unfused
from fedcollm.training.optimizers import adamw

Change = Callable[[Any], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Way:
    """A way to compute a step.

    Attributes:
        forward: from a model and a batch's forms to [P, V].
        attention: name of an implementation.
        changes: of the model, while it is measured.
        autocast: whether products are cast to bfloat16, as Trainer's `bf16` does.
    """

    forward: Callable[[Any, Forms], Tensor]
    attention: str = "sdpa"
    changes: tuple[Change, ...] = ()
    autocast: bool = False


WAYS = {
    "fused, sdpa (as run)": Way(paths.left_padded),
    "fused, grouped, packed": Way(paths.packed, "grouped"),
    "fused, varlen": Way(paths.flat, VARLEN),
    "fused, right-padded causal": Way(paths.causal),
    "fused, pointwise compiled": Way(paths.left_padded, changes=(pointwise_compiled,)),
    "fused, pointwise compiled, right-padded causal": Way(paths.causal, changes=(pointwise_compiled,)),
    "fused, pointwise compiled, varlen": Way(paths.flat, VARLEN, (pointwise_compiled,)),
    "unfused, sdpa": Way(paths.left_padded, changes=(unfused,)),
    "unfused, sdpa, autocast": Way(paths.left_padded, changes=(unfused,), autocast=True),
    "unfused, right-padded causal": Way(paths.causal, changes=(unfused,)),
    "unfused, layers compiled": Way(paths.left_padded, changes=(unfused, layers_compiled)),
}
_EAGER = ("fused, sdpa (as run)", "fused, grouped, packed", "fused, right-padded causal", "unfused, sdpa")


def cases(tiny: bool) -> list[dict[str, Any]]:
    """Return both batches that were measured; tiny: the ways that a CPU can go, without a compiler."""
    if tiny:
        more = {"pool": TINY_POOL, "calls": 1}
        return [_case("tiny-2", "icd10", 4, _EAGER, **more)]
    return [
        _case("smollm2-10", "arc_challenge", 128, tuple(WAYS), calls=10),
        _case("qwen-0.5b", "arc_challenge", 64, tuple(WAYS), calls=6),
    ]


def _case(network: str, data: str, batch: int, ways: Sequence[str], **more: Any) -> dict[str, Any]:
    return {
        "part": "variants",
        "title": f"{TITLES[network]}, {data}, batch {batch}",
        "run": "benchmarks.gpu.variants:steps",
        "llm": network,
        "slm": network,
        "data": data,
        "batch_size": batch,
        "ways": ways,
        "needs": needs(data, SMOLLM2),
        "pool": POOLS[data],
        **more,
    }


def steps(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a record for every way: milliseconds as it runs and as a graph, memory, first and last loss."""
    prepared = with_models(case, attention="sdpa")
    config = configuration(prepared)
    task, size = task_of(config), case["batch_size"]
    # the middle third of three batches, by length
    examples = sorted(drawn_for(prepared).private["0"][: 3 * size], key=task.size)[size : 2 * size]
    model, forms = our_model(config, "slm", task), Forms(task, examples)
    operations, initial = useful_operations(model, sequences(task, examples)), read_adapter(model)
    model.train()
    for label in case["ways"]:
        write_adapter(model, initial)
        figures = _measured(model, forms, WAYS[label], case["calls"])
        if rate := case.get("rate"):
            milliseconds = figures.get("milliseconds", {})
            figures["share"] = {name: operations / value * 1e3 / rate for name, value in milliseconds.items()}
        yield {"label": label, "columns": forms.columns, "tokens": forms.tokens, "operations": operations, **figures}
        model.zero_grad(set_to_none=True)
        clear()


def _measured(model: Any, forms: Forms, way: Way, calls: int) -> dict[str, Any]:
    """Return what one way takes; if it can't be gone, why."""
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_attention(model, way.attention))
            for change in way.changes:
                stack.enter_context(change(model))
            step = _step(model, forms, way)
            first = float(step().detach())
            seconds, added = peak_bytes_of(lambda: best_seconds(step, calls))
            figures = {"added_bytes": added, "losses": [first, float(step().detach())]}
            return figures | {"milliseconds": {"eager": 1e3 * seconds}} | _as_graph(step, calls, 1e3 * seconds)
    except Exception as error:  # a way that this device or this torch can't go
        return {"failed": f"{type(error).__name__}: {error}"[:300]}


@contextlib.contextmanager
def _attention(model: Any, kind: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.config._attn_implementation = kind
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _step(model: Any, forms: Forms, way: Way) -> Callable[[], Tensor]:
    """Return a function that takes one step and returns its loss."""
    optimizer = adamw(model, ClientConfig())
    for group in optimizer.param_groups:
        group["capturable"] = device().type == "cuda"  # so that a graph can take it

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device().type, torch.bfloat16, enabled=way.autocast):
            logits = way.forward(model, forms).float()
        loss = cross_entropy(logits, forms.targets)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _as_graph(step: Callable[[], Tensor], calls: int, eager_milliseconds: float) -> dict[str, Any]:
    """Return the same for a step that is recorded once and replayed; why not, if it can't be recorded."""
    if device().type != "cuda":
        return {}
    try:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(beside)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step()
        seconds = best_seconds(graph.replay, calls, warm_up=1)
    except RuntimeError as error:
        torch.cuda.synchronize()
        return {"graph_failed": f"{type(error).__name__}: {error}"[:300]}
    milliseconds = {"eager": eager_milliseconds, "graph": 1e3 * seconds}
    return {"milliseconds": milliseconds, "graph_loss": float(loss.detach())}
