"""A run's adapter under EleutherAI's lm-evaluation-harness, item by item beside the scorer of the training loop.

The test examples are written in the columns of the data set that they came from, and a task file includes the one that
ships with the harness: prompts, choices and metrics are the harness's own. Nothing is downloaded.
"""

import contextlib
import copy
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from fedcollm import run_directory as directories
from fedcollm.errors import UserError
from fedcollm.progress import say, track
from fedcollm.runner import restore
from fedcollm.tasks.text import TextExample, TextTask, picks

#: The harness's own task files, under `lm_eval/tasks`.
TASK_FILES: Mapping[str, str] = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "commonsense_qa": "commonsense_qa/default.yaml",
}

_REQUESTS_AT_ONCE = 256


@dataclass(frozen=True)
class Scored:
    """What one scorer says of N examples.

    Attributes:
        metrics: `acc`, and `acc_norm` where the task has it: means over the examples.
        likelihoods: N tensors [C], the log-likelihood of each choice, in nats.
    """

    metrics: dict[str, float]
    likelihoods: list[Tensor]


@dataclass(frozen=True)
class Parity:
    """The harness beside the scorer of the loop.

    Attributes:
        version: of lm-evaluation-harness.
        examples: N.
        harness: its metrics and log-likelihoods.
        ours: those of `TextTask`.
        differing: metric to the number of examples whose picks differ.
        largest_difference: of the log-likelihoods of one choice, in nats.
    """

    version: str
    examples: int
    harness: Scored
    ours: Scored
    differing: dict[str, int]
    largest_difference: float


def evaluate_with_harness(directory: Path, role: str) -> Parity:
    """Score the adapter that a run left on disk with the harness, and with the scorer of the loop.

    The harness's task file and data are left in `directory / "harness"`.

    Args:
        directory: a run directory with at least one finished round.
        role: `slm` or `llm`.

    Raises:
        UserError: no such run, role or task, or lm-eval is not installed.
    """
    name = directories.read_config(directory).task.name
    if name not in TASK_FILES:
        raise UserError(
            f"task.name: {name!r} is no task of lm-evaluation-harness. --harness knows {', '.join(TASK_FILES)}; "
            "evaluate this run without it."
        )
    _simple_evaluate()
    config, federation = restore(directory, role)
    model, task = federation.server.models()[role], federation.task
    assert isinstance(task, TextTask)
    return compare(task, model, federation.split.test, directory / "harness", config.evaluation.batch_size)


def compare(
    task: TextTask, model: nn.Module, examples: Sequence[TextExample], directory: Path, batch_size: int
) -> Parity:
    """Both scorers on the same examples.

    Args:
        task: one of `TASK_FILES`.
        model: a causal language model of transformers, with PEFT around it or not.
        examples: labelled ones.
        directory: for the harness's task file, data and cache; replaced as a whole.
        batch_size: sequences (harness) or examples (ours) a forward pass.
    """
    with directories.writing(directory):
        write_task(task.name, examples, directory)
    harness = score_with_harness(task, model, examples, directory, batch_size)
    ours = score(task, model, examples, batch_size)
    pairs = list(zip(examples, harness.likelihoods, ours.likelihoods, strict=True))
    chosen = [(picks(example, theirs), picks(example, own)) for example, theirs, own in pairs]
    return Parity(
        version=metadata.version("lm_eval"),
        examples=len(examples),
        harness=harness,
        ours=ours,
        differing={m: sum(theirs[m] != own[m] for theirs, own in chosen) for m in harness.metrics},
        largest_difference=max(float((theirs - own).abs().max()) for _, theirs, own in pairs),
    )


def score(task: TextTask, model: nn.Module, examples: Sequence[TextExample], batch_size: int) -> Scored:
    """The scorer of the loop, example by example: batches of like size, as `training.evaluate` makes them."""
    order = sorted(range(len(examples)), key=lambda i: task.size(examples[i]))
    likelihoods = [torch.empty(0)] * len(examples)
    starts = range(0, len(order), batch_size)
    model.eval()
    with torch.inference_mode():
        for start in track(starts, "scoring", total=len(starts)):
            batch = order[start : start + batch_size]
            for i, values in zip(batch, task.likelihoods(model, [examples[i] for i in batch]), strict=True):
                likelihoods[i] = values.double()
    chosen = [picks(example, values) for example, values in zip(examples, likelihoods, strict=True)]
    right = {
        metric: sum(picked[metric] == example.answer for example, picked in zip(examples, chosen, strict=True))
        for metric in ("acc", "acc_norm")
    }
    return Scored({metric: count / len(examples) for metric, count in right.items()}, likelihoods)


def score_with_harness(
    task: TextTask, model: Any, examples: Sequence[TextExample], directory: Path, batch_size: int
) -> Scored:
    """The harness on the task file that `write_task` wrote.

    No token begins a sequence that the adapter was not tuned with (`add_bos_token`), contexts are cut where ours are,
    and log-probabilities are taken in float32.
    """
    simple_evaluate = _simple_evaluate()
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    say("scoring with lm-evaluation-harness")
    with _quiet_and_offline():
        lm = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(task.tokenizer),  # the harness gives it a padding token if it has none
            max_length=task.context_length,
            batch_size=batch_size,
            softmax_dtype="float32",
            add_bos_token=False,
            prefix_token_id=task.start_token(),
        )
        vars(lm)["_loglikelihood_tokens"] = _tracked(lm._loglikelihood_tokens)
        results = simple_evaluate(
            model=lm,
            tasks=[_task_name(task.name)],
            task_manager=TaskManager(include_path=str(directory), include_defaults=False),
            bootstrap_iters=0,
            random_seed=None,  # pyright: ignore[reportArgumentType]
            numpy_random_seed=None,  # pyright: ignore[reportArgumentType]
            torch_random_seed=None,  # pyright: ignore[reportArgumentType]
            fewshot_random_seed=None,  # pyright: ignore[reportArgumentType]
        )
    values = results["results"][_task_name(task.name)]
    samples = sorted(results["samples"][_task_name(task.name)], key=lambda sample: sample["doc_id"])
    likelihoods = [torch.tensor([v for v, _ in s["filtered_resps"]], dtype=torch.double) for s in samples]
    return Scored({m: float(values[f"{m},none"]) for m in ("acc", "acc_norm") if f"{m},none" in values}, likelihoods)


def write_task(name: str, examples: Sequence[TextExample], directory: Path) -> None:
    """Write the examples and a task file for the harness; the directory is replaced as a whole.

    Raises:
        UserError: this version of the harness has no such task, or an example does not fit its template.
    """
    import lm_eval.tasks

    own = Path(lm_eval.tasks.__file__).parent / TASK_FILES[name]
    if not own.is_file():
        raise UserError(
            f"lm-eval {metadata.version('lm_eval')} has no {TASK_FILES[name]}. Install one that was tried: "
            "pip install 'lm-eval==0.4.13'"
        )
    lines = [json.dumps(original_row(name, example)) + "\n" for example in examples]
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    data = directory.resolve() / f"{name}.jsonl"
    data.write_text("".join(lines), encoding="utf-8")
    settings = {
        "include": str(own),
        "task": _task_name(name),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(directory.resolve() / "cache")},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
    }
    (directory / f"{name}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def original_row(name: str, example: TextExample) -> dict[str, Any]:
    """An example in the columns of its data set on the Hugging Face hub: the inverse of `tasks.qa`.

    Raises:
        UserError: a question of `commonsense_qa` does not have the five choices of the harness's template.
    """
    question, texts = example.prompt, list(example.choices)
    if name == "commonsense_qa":
        if len(texts) != 5:
            raise UserError(
                f"example {example.id}: {len(texts)} choices. The harness's commonsense_qa takes questions with five; "
                "evaluate this run without --harness."
            )
        question, texts = _parts(example)
    elif name != "openbookqa":
        question = question.removeprefix("Question: ").removesuffix("\nAnswer:")
    return {
        "id": example.id,
        "question_stem" if name == "openbookqa" else "question": question,
        "choices": {"text": texts, "label": list(example.labels)},
        "answerKey": example.label,
    }


def _parts(example: TextExample) -> tuple[str, list[str]]:
    """Question and choices of a prompt that lists them: `Question: ...`, `A. ...`, ..., `Answer:`."""
    rest, texts = example.prompt.removeprefix("Question: ").removesuffix("\nAnswer:"), []
    for label in reversed(example.labels):
        rest, _, text = rest.rpartition(f"\n{label}. ")
        texts.insert(0, text)
    return rest, texts


def _task_name(name: str) -> str:
    return f"fedcollm_{name}"


def _simple_evaluate() -> Callable[..., Any]:
    """The harness's entry point.

    Raises:
        UserError: it is not installed.
    """
    try:
        from lm_eval import simple_evaluate
    except ImportError as error:
        raise UserError(
            "--harness needs lm-evaluation-harness. Install it: pip install 'fedcollm[evaluation]'"
        ) from error
    return simple_evaluate


def _tracked(score_tokens: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """The harness's log-likelihoods of many requests, some at a time, with progress of our kind."""

    def tracked(requests: list[Any], **_: Any) -> list[Any]:
        parts = [requests[i : i + _REQUESTS_AT_ONCE] for i in range(0, len(requests), _REQUESTS_AT_ONCE)]
        done = track(parts, "lm-evaluation-harness", total=len(parts))
        return [answer for part in done for answer in score_tokens(part, disable_tqdm=True)]

    return tracked


@contextlib.contextmanager
def _quiet_and_offline() -> Iterator[None]:
    """Keep the harness's bars and log from standard error, and `datasets` from the network."""
    from datasets import config

    log, offline = logging.getLogger("lm_eval"), config.HF_HUB_OFFLINE
    level = log.level
    try:
        config.HF_HUB_OFFLINE = True
        log.setLevel(logging.ERROR)
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        config.HF_HUB_OFFLINE = offline
        log.setLevel(level)
