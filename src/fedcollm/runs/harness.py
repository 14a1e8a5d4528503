"""Score a run's adapter with EleutherAI's lm-evaluation-harness, and compare with fedcollm's own scorer item by item.

The test examples are written in the columns of their original data set. The task file includes the one that ships with
the harness, so that prompts, choices and metrics are the harness's own. Nothing is downloaded.
"""

import contextlib
import copy
import importlib.util
import io
import json
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
import yaml
from torch import Tensor, nn

from fedcollm.errors import UserError
from fedcollm.modalities.text.task import TextExample, TextTask, picks
from fedcollm.progress import say, track
from fedcollm.runs import directory as directories
from fedcollm.runs.runner import restore
from fedcollm.storage import make_directory, write_atomically, writing
from fedcollm.training.batches import like_sized

#: Task to the harness's own task file, under `lm_eval/tasks`.
TASK_FILES: Mapping[str, str] = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "commonsense_qa": "commonsense_qa/default.yaml",
}

#: Name of the task in the file that `write_task` writes.
_TASK = "fedcollm_test"

#: Number of requests that the harness scores per step of the progress bar.
_REQUESTS_AT_ONCE = 256


@dataclass(frozen=True)
class Parity:
    """Scores by the harness and by fedcollm's own scorer.

    Attributes:
        task: name of the task.
        version: version of lm-evaluation-harness.
        examples: number of examples scored.
        harness: means by the harness: `acc` and, if its task has it, `acc_norm`.
        ours: means of the same metrics by `TextTask`.
        differing: metric to the number of examples for which the two pick different choices.
        largest_difference: largest difference between the two log-likelihoods of a choice, in nats.
        dtype: dtype in which the base computes.
    """

    task: str
    version: str
    examples: int
    harness: dict[str, float]
    ours: dict[str, float]
    differing: dict[str, int]
    largest_difference: float
    dtype: str


def evaluate_with_harness(directory: Path, role: str) -> Parity:
    """Score a role's adapter of a run's last finished round with both scorers.

    The harness's files stay in `harness`, in the run directory.

    Args:
        directory: a run directory with at least one finished round.
        role: `slm` or `llm`.

    Raises:
        UserError: the directory holds no run, or no adapter of that role; the harness does not have the run's task; or
            lm-eval is not installed.
    """
    name = directories.read_config(directory).task.name
    if name not in TASK_FILES:
        raise UserError(
            f"task.name: --harness scores {', '.join(TASK_FILES)}, not {name}. Evaluate this run without --harness."
        )
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("--harness needs lm-evaluation-harness. Install it: pip install 'fedcollm[evaluation]'")
    config, federation = restore(directory, role)
    pair = federation.server.pair
    task, model = pair.modality.of(role), pair.models()[role]
    assert isinstance(task, TextTask)
    return compare(task, model, federation.split.test, directory / "harness", config.evaluation.batch_size)


def compare(
    task: TextTask, model: nn.Module, examples: Sequence[TextExample], directory: Path, batch_size: int
) -> Parity:
    """Score labelled examples with both scorers.

    Args:
        task: a task that is named in `TASK_FILES`.
        model: a causal language model of transformers, or a PEFT model of one.
        examples: labelled examples.
        directory: directory for the harness's task file, data and cache; it is replaced as a whole.
        batch_size: sequences (harness) or examples (ours) per forward pass.
    """
    with writing(directory):
        write_task(task.name, examples, directory)
    harness, theirs = score_with_harness(task, model, directory, batch_size)
    ours = score(task, model, examples, batch_size)
    chosen = [(picks(e, a), picks(e, b), e.answer) for e, a, b in zip(examples, theirs, ours, strict=True)]
    return Parity(
        task=task.name,
        version=metadata.version("lm_eval"),
        examples=len(examples),
        harness=harness,
        ours={metric: sum(b[metric] == answer for _, b, answer in chosen) / len(chosen) for metric in harness},
        differing={metric: sum(a[metric] != b[metric] for a, b, _ in chosen) for metric in harness},
        largest_difference=max(float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True)),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
    )


def score(task: TextTask, model: nn.Module, examples: Sequence[TextExample], batch_size: int) -> list[Tensor]:
    """Score the examples as the training loop does, in the same batches; return each one's log-likelihoods [C]."""
    batches = like_sized(task, examples, batch_size)
    scored: dict[int, Tensor] = {}
    with torch.inference_mode():
        for batch in track(batches, "scoring", total=len(batches)):
            scored |= dict(zip(batch, task.likelihoods(model.eval(), [examples[i] for i in batch]), strict=True))
    return [scored[i] for i in range(len(examples))]


def score_with_harness(
    task: TextTask, model: Any, directory: Path, batch_size: int
) -> tuple[dict[str, float], list[Tensor]]:
    """Score the examples in a directory that `write_task` wrote with the harness.

    The harness is set to add no token before a prompt, because the adapter was tuned without one; to cut long prompts
    where the task does; and to take log-probabilities in float32.

    Returns:
        The means of the harness's metrics, and each example's log-likelihoods [C].
    """
    import lm_eval  # pyright: ignore[reportMissingTypeStubs]
    from lm_eval import tasks  # pyright: ignore[reportMissingTypeStubs]
    from lm_eval.models import huggingface  # pyright: ignore[reportMissingTypeStubs]

    say("scoring with lm-evaluation-harness")
    with _quiet_and_offline():
        lm = cast(Any, huggingface).HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(task.tokenizer),  # a copy, to which the harness may add a padding token
            max_length=task.context_length,
            batch_size=batch_size,
            softmax_dtype="float32",
            add_bos_token=False,
            prefix_token_id=task.start_token(),  # required, even if the tokenizer has no special tokens
        )
        vars(lm)["_loglikelihood_tokens"] = _tracked(lm._loglikelihood_tokens)
        seeds = dict.fromkeys(("random_seed", *(f"{kind}_random_seed" for kind in ("numpy", "torch", "fewshot"))))
        manager = cast(Any, tasks).TaskManager(include_path=str(directory), include_defaults=False)
        results = cast(Any, lm_eval).simple_evaluate(
            lm, tasks=[_TASK], task_manager=manager, bootstrap_iters=0, **seeds
        )
    means = {name.removesuffix(",none"): value for name, value in results["results"][_TASK].items()}
    samples = sorted(results["samples"][_TASK], key=lambda sample: sample["doc_id"])
    likelihoods = [torch.tensor([value for value, _ in sample["filtered_resps"]]) for sample in samples]
    return {name: float(means[name]) for name in ("acc", "acc_norm") if name in means}, likelihoods


def _tracked(likelihoods_of: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Return the harness's function that scores requests, changed to show our progress in place of its own bar."""

    def tracked(requests: list[Any], **_: Any) -> list[Any]:
        parts = [requests[start : start + _REQUESTS_AT_ONCE] for start in range(0, len(requests), _REQUESTS_AT_ONCE)]
        shown = track(parts, "scoring with lm-evaluation-harness", total=len(parts))
        return [answer for part in shown for answer in likelihoods_of(part, disable_tqdm=True)]

    return tracked


@contextlib.contextmanager
def _quiet_and_offline() -> Generator[None, None, None]:
    """Keep the harness off the network, and its progress bars and log off standard error.

    The harness also asks git for the commit of the working directory, to name it in results that we do not keep. The
    message that git prints outside a repository is avoided.
    """
    import datasets.config  # pyright: ignore[reportMissingTypeStubs]
    import lm_eval.evaluator  # pyright: ignore[reportMissingTypeStubs]

    offline = mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True)
    no_commit = mock.patch.object(lm_eval.evaluator, "get_git_commit_hash", str, create=True)
    with contextlib.redirect_stderr(io.StringIO()), offline, no_commit:
        yield


def write_task(name: str, examples: Sequence[TextExample], directory: Path) -> None:
    """Write a task for the harness: the examples, and a task file that includes the harness's own.

    Args:
        name: a key of `TASK_FILES`.
        examples: labelled examples.
        directory: where to write; it is replaced as a whole.

    Raises:
        UserError: the installed version of the harness does not have the task, or an example does not fit its template.
    """
    import lm_eval.tasks  # pyright: ignore[reportMissingTypeStubs]

    own = Path(lm_eval.tasks.__file__).parent / TASK_FILES[name]
    if not own.is_file():
        version = metadata.version("lm_eval")
        raise UserError(f"lm-eval {version} has no {TASK_FILES[name]}. Install another: pip install 'lm-eval==0.4.13'")
    lines = [json.dumps(original_row(name, example)) + "\n" for example in examples]
    shutil.rmtree(directory, ignore_errors=True)
    make_directory(directory)
    data, cache = (directory.resolve() / place for place in (f"{name}.jsonl", "cache"))
    write_atomically(data, "".join(lines))
    settings = {
        "include": str(own),
        "task": _TASK,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(cache)},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
    }
    write_atomically(directory / f"{name}.yaml", yaml.safe_dump(settings, sort_keys=False))


def original_row(name: str, example: TextExample) -> dict[str, Any]:
    """Return an example in the columns of its data set on the Hugging Face hub: the inverse of `data.sources.qa`.

    Args:
        name: a key of `TASK_FILES`.
        example: a labelled example of that task.

    Raises:
        UserError: a question of `commonsense_qa` does not have the five choices of the harness's template.
    """
    question, texts = example.prompt, list(example.choices)
    if name != "openbookqa":
        question = question.removeprefix("Question: ").removesuffix("\nAnswer:")
    if name == "commonsense_qa":
        if len(texts) != 5:
            raise UserError(f"example {example.id} has {len(texts)} choices; the harness's commonsense_qa wants five.")
        for index, label in reversed(list(enumerate(example.labels))):  # the prompt lists them as lines "A. ..."
            question, _, texts[index] = question.rpartition(f"\n{label}. ")
    return {
        "id": example.id,
        "question_stem" if name == "openbookqa" else "question": question,
        "choices": {"text": texts, "label": list(example.labels)},
        "answerKey": example.label,
    }
