"""lm-evaluation-harness on a model that is loaded already and examples of ours: the peer of B3, and a part of B5's."""

import logging
from collections.abc import Sequence
from typing import Any

from fedcollm.modalities.text.examples import TextExample


def harness_model(model: Any, tokenizer: Any, batch_size: int, softmax_dtype: str | None = "float32") -> Any:
    """The harness's `hf` model around a transformers or PEFT model.

    Args:
        model: in evaluation mode afterwards.
        tokenizer: of the model.
        batch_size: sequences a forward pass.
        softmax_dtype: the harness's option; None, its default, keeps the model's dtype.
    """
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype=softmax_dtype)


def harness_task(examples: Sequence[TextExample]) -> Any:
    """A zero-shot multiple-choice task of the harness with the prompts, choices and answers of our examples."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    rows = [{"prompt": e.prompt, "choices": list(e.choices), "answer": e.answer} for e in examples]
    return ConfigurableTask(
        config={
            "task": "examples",
            "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(rows)}),
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": lambda row: row["prompt"],
            "doc_to_choice": lambda row: row["choices"],
            "doc_to_target": lambda row: row["answer"],
            "target_delimiter": " ",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
    )


def harness_evaluate(model: Any, task: Any) -> dict[str, Any]:
    """Score once, without bootstrapped standard errors.

    Args:
        model: of `harness_model`.
        task: of `harness_task`; its requests are made anew, as no answer may be taken from an earlier call.

    Returns:
        `acc`, `acc_norm`, and for each item its choices' log-likelihoods, `likelihoods`.
    """
    from lm_eval.evaluator import evaluate

    result = evaluate(model, {"examples": task}, bootstrap_iters=0, log_samples=True)
    samples = sorted(result["samples"]["examples"], key=lambda sample: sample["doc_id"])
    metrics = result["results"]["examples"]
    return {
        "acc": metrics["acc,none"],
        "acc_norm": metrics["acc_norm,none"],
        "likelihoods": [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples],
    }
