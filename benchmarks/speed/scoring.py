"""B3: multiple-choice scoring, `fedcollm.training.fine_tuning.evaluate` beside lm-evaluation-harness's `hf` model.

The same items, prompts, weights and dtype; a repetition is all that a caller waits for: tokenizing, forward passes,
metrics. The harness keeps its cache of one-token answers (its default), skips bootstrapping, and has the batch size
that was its fastest of 4, 8, 16, 32 and 64; ours has that of the preset on `icd10`, and was not swept elsewhere. The
harness is timed with its default softmax, which in bfloat16 is the faster one but rounds log-probabilities to 8 bits;
its predictions are those of an untimed pass with `softmax_dtype="float32"`.
"""

import operator
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.lm_harness import harness_evaluate, harness_model, harness_task
from benchmarks.speed.material import drawn_for, layers_of

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

#: Largest root of the mean squared difference between the two sides' log-likelihoods in float32, in nats a token.
TOLERANCE = 1e-3

#: In bfloat16 both round; ours may err by this factor more than the peer against float32, root mean square for both.
#: Three attentions that round alike (ours, ours with float32 scores, torch's fused one) err by .053, .043, .054 nats a
#: token on 100 items of `arc_challenge` and by .087, .092, .107 on 40 of `pubmedqa`: factors up to 1.25 are chance, and
#: the largest seen against the peer, 1.33, is not far from it.
ERROR_FACTOR = 1.5

#: Gap of two choices, in nats a token, within which bfloat16 may pick either.
TIE = 0.5

_SIDES = {
    "ours": "benchmarks.speed.scoring:ours",
    "peer": "benchmarks.speed.scoring:lm_eval",
    "same": "benchmarks.speed.scoring:same",
}


#: Sequences a forward pass, ours (examples) and the harness's.
_BATCH_SIZES = {"icd10": (64, 32), "arc_challenge": (32, 8), "pubmedqa": (8, 4)}


def _case(data: str, items: int, dtype: str, form: str, layers: int | None = None) -> dict:
    model = f"SmolLM2-135M, {layers or 30} layers"
    return {
        "row": "B3",
        "title": f"{data}, {items} items, {model}, {dtype}",
        "peer_name": "lm-evaluation-harness",
        **_SIDES,
        "target": "≥ 4 ×",
        "form": form,
        "needs": [] if data == "icd10" else [f"../shared/data/{data}"],
        "data": data,
        "items": items,
        "source": "smollm2-135m",
        "layers": layers,
        "dtype": dtype,
        "peer_attention": "eager" if data == "icd10" else "sdpa",
        "batch_size": _BATCH_SIZES[data][0],
        "peer_batch_size": _BATCH_SIZES[data][1],
    }


CASES = (
    _case("icd10", 150, "bfloat16", "short"),
    _case("icd10", 150, "float32", "long"),
    _case("icd10", 150, "bfloat16", "long", layers=10),
    _case("arc_challenge", 100, "bfloat16", "short"),
    _case("arc_challenge", 100, "float32", "long"),
    _case("pubmedqa", 40, "bfloat16", "short"),
    _case("pubmedqa", 40, "float32", "long"),
)


def examples_of(case: dict) -> list[Any]:
    """The first `items` test examples of the case's data."""
    from fedcollm.config import FormatConfig
    from fedcollm.config.loading import load_config
    from fedcollm.data.catalogue import load_pool
    from fedcollm.data.files import load_custom
    from fedcollm.data.partition import split
    from fedcollm.data.sources.qa import load_qa

    if case["data"] == "icd10" and "pool" in case:
        test = drawn_for(case).test
    elif case["data"] == "icd10":
        config = load_config("icd10")
        test = split(load_pool(config.task, config.seed), config.task, config.seed).test
    elif case["data"] == "pubmedqa":
        columns = FormatConfig(prompt="{question}\nAnswer:", answer="answer", choices="choices")
        test = load_custom(DATA / "pubmedqa", columns).test
    else:
        test = load_qa(case["data"], DATA).test
    return list(test or ())[: case["items"]]


def base_model(case: dict, attention: str) -> Any:
    """The frozen base network of a case, with float32 products as `fedcollm run` sets them."""
    from fedcollm.models.adapters import resolve_device
    from fedcollm.models.pretrained import base_directory, load_causal_lm

    torch.set_float32_matmul_precision("medium" if case["dtype"] == "bfloat16" else "highest")
    place, device = base_directory(case["source"], case["layers"]), resolve_device("auto")
    return load_causal_lm(place, getattr(torch, case["dtype"]), attention, device.type).to(device)


def adapter_values(shapes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The same small random adapter for both sides: name to values, none of them zero as in a fresh one."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shapes[name], generator=generator) * 0.02 for name in sorted(shapes)}


def ours(case: dict) -> Callable[[], dict]:
    """`evaluate` on a fresh task, so that every repetition tokenizes."""
    from fedcollm.config import ModelConfig
    from fedcollm.modalities.text.models import pair_facts
    from fedcollm.modalities.text.task import TextTask
    from fedcollm.models.adapters import add_adapter, read_adapter, write_adapter
    from fedcollm.models.fused.patch import fuse
    from fedcollm.training.fine_tuning import evaluate

    section = ModelConfig(source=case["source"], layers=case["layers"])
    examples, facts = examples_of(case), pair_facts(section, section, False).slm

    def adapted(part: dict) -> Any:
        model = add_adapter(base_model(part, "auto"))
        fuse(model)  # as `build_model` does
        write_adapter(model, adapter_values({name: tensor.shape for name, tensor in read_adapter(model).items()}))
        return model

    def fresh() -> TextTask:
        return TextTask(case["data"], facts.tokenizer, facts.vocabulary_size, facts.context_length)

    exact = None
    if case["dtype"] != "float32":
        exact = _our_likelihoods(fresh(), adapted(case | {"dtype": "float32"}), examples, case["batch_size"])
    model = adapted(case)
    likelihoods = _our_likelihoods(fresh(), model, examples, case["batch_size"])
    figures = _chosen(likelihoods, examples, case) | {"slack": _slack(fresh(), examples), "exact": exact}

    def repeat() -> dict:
        task = fresh()
        start = time.perf_counter()
        with layers_of(model, case):
            score = evaluate(task, model, examples, case["batch_size"])
        seconds = time.perf_counter() - start
        metrics = {"acc": score.mean("acc"), "acc_norm": score.mean("acc_norm")}
        return {"seconds": seconds, "items": len(examples), **metrics, **figures}

    return repeat


def _our_likelihoods(task: Any, model: Any, examples: Sequence[Any], batch_size: int) -> list[list[float]]:
    """Log-likelihoods of each example's choices, in the batches that `evaluate` makes, in the examples' own order."""
    order = sorted(examples, key=task.size)
    found: dict[str, list[float]] = {}
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for example, (likelihoods, _) in zip(batch, task._likelihoods(model, batch), strict=True):
                found[example.id] = [float(value) for value in likelihoods]
    return [found[example.id] for example in examples]


def _slack(task: Any, examples: Sequence[Any]) -> dict[str, list[list[float]]]:
    """Metric to how far it moves, of each choice, if the log-likelihood of every token moves by one."""
    tokens = [[float(len(task.encode(e.prompt, choice)[1])) for choice in e.choices] for e in examples]
    lengths = [[len(choice) for choice in example.choices] for example in examples]
    return {"acc": tokens, "acc_norm": list(map(_divided, tokens, lengths))}


def lm_eval(case: dict) -> Callable[[], dict]:
    """The harness around plain PEFT on the same base; the task is made before the clock starts."""
    import peft

    from fedcollm.models.pretrained import load_tokenizer

    os.environ.setdefault("TQDM_DISABLE", "1")
    examples = examples_of(case)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base_model(case, case["peer_attention"]), config)
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    peft.set_peft_model_state_dict(model, adapter_values({name: tensor.shape for name, tensor in state.items()}))
    harness = harness_model(model, load_tokenizer(case["source"]), case["peer_batch_size"])
    task = harness_task(examples)
    found = harness_evaluate(harness, task)
    figures = {"items": len(examples)} | _chosen(found.pop("likelihoods"), examples, case) | found
    harness.softmax_dtype = None

    def repeat() -> dict:
        start = time.perf_counter()
        answers = harness_evaluate(harness, task)["likelihoods"]
        seconds = time.perf_counter() - start
        picks = _chosen(answers, examples, case)["picked"]["acc"]
        differing = sum(map(operator.ne, picks, figures["picked"]["acc"]))
        return {"seconds": seconds, **figures, "picks_that_default_softmax_changes": differing}

    return repeat


def _chosen(likelihoods: Sequence[Sequence[float]], examples: Sequence[Any], case: dict) -> dict[str, Any]:
    """What each metric picks, the first of equals, and what is needed to compare two sides."""
    answers = [example.answer for example in examples]
    lengths = [[len(choice) for choice in example.choices] for example in examples]
    values = {"acc": likelihoods, "acc_norm": list(map(_divided, likelihoods, lengths))}
    picked = {metric: [row.index(max(row)) for row in rows] for metric, rows in values.items()}
    right = {metric: sum(map(operator.eq, picks, answers)) / len(answers) for metric, picks in picked.items()}
    return {"values": values, "picked": picked, "right": right, "dtype": case["dtype"]}


def _divided(values: Sequence[float], counts: Sequence[int]) -> list[float]:
    return [value / count for value, count in zip(values, counts, strict=True)]


def same(ours: dict, peer: dict) -> str:
    """Both sides pick the same choice of every item; in bfloat16, but for ties within its rounding.

    Args:
        ours: figures, with `slack`: how far one nat a token moves a choice.
        peer: figures.

    Raises:
        ValueError: log-likelihoods differ by more than the tolerance, a prediction differs without such a tie, or
            the metrics that a side reports are not those of its predictions.
    """
    for side in (ours, peer):
        if any(abs(side[metric] - side["right"][metric]) > 1e-9 for metric in ("acc", "acc_norm")):
            raise ValueError(f"reported {side['acc']}, {side['acc_norm']} and predicted {side['right']}")
    slack = ours["slack"]["acc"]
    apart = _rms(ours["values"]["acc"], peer["values"]["acc"], slack)
    said = f"log-likelihoods {apart:.2g} nats a token apart (rms)"
    if ours["dtype"] == "float32":
        if not apart <= TOLERANCE:
            raise ValueError(f"{said}, more than {TOLERANCE:g}")
    else:
        errors = [_rms(side["values"]["acc"], ours["exact"], slack) for side in (ours, peer)]
        said += f"; from float32 ours {errors[0]:.2g}, the peer {errors[1]:.2g}"
        if not errors[0] <= ERROR_FACTOR * errors[1]:
            raise ValueError(f"{said}: more than {ERROR_FACTOR} times the peer's")
    return "; ".join([said, *(_compare_picks(metric, ours, peer) for metric in ("acc", "acc_norm"))])


def _rms(
    ones: Sequence[Sequence[float]], others: Sequence[Sequence[float]], tokens: Sequence[Sequence[float]]
) -> float:
    """Root of the mean squared difference of choices' log-likelihoods, in nats a token."""
    rows = zip(ones, others, tokens, strict=True)
    apart = [((p - q) / n) ** 2 for row in rows for p, q, n in zip(*row, strict=True)]
    return (sum(apart) / len(apart)) ** 0.5


def _compare_picks(metric: str, ours: dict, peer: dict) -> str:
    """How many items are picked otherwise, and how close the two picks of those are at most, by either side."""
    pairs = list(zip(ours["picked"][metric], peer["picked"][metric], strict=True))
    differing = [(i, p, q) for i, (p, q) in enumerate(pairs) if p != q]
    if not differing:
        return f"{metric}: the same choice of all {len(pairs)} items"
    slack = ours["slack"][metric]
    gaps = [
        abs(side["values"][metric][i][p] - side["values"][metric][i][q]) / (slack[i][p] + slack[i][q])
        for i, p, q in differing
        for side in (ours, peer)
    ]
    if ours["dtype"] == "float32" or max(gaps) > TIE:
        raise ValueError(f"{metric}: {len(differing)} of {len(pairs)} picks differ, up to {max(gaps):.3g} a token")
    return f"{metric}: {len(differing)} of {len(pairs)} picks differ, all of them ties within {max(gaps):.2g} a token"
