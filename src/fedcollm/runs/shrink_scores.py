"""Zero-shot accuracy of a model before it was cut, after it was cut, and after it was healed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.data.catalogue import build_modality, load_pool
from fedcollm.data.partition import split
from fedcollm.models.adapters import resolve_device, resolve_dtype
from fedcollm.models.pretrained import base_directory, load_causal_lm
from fedcollm.models.pruning import prune_layers
from fedcollm.runs.shrink import shrink_report
from fedcollm.training.fine_tuning import evaluate


def zero_shot(config: RunConfig, source: str, made: Path) -> dict[str, float]:
    """Score the whole, the cut and the healed model on a task's test examples, without any adapter.

    Args:
        config: gives the task, the device and the batch size of scoring.
        source: source of the whole model.
        made: directory of the model that `shrunk` made of it.

    Returns:
        The main metric by `whole`, `cut` and `healed`. `cut` is missing if MLPs lost neurons, since what was cut can't
        be made again without measuring it again.

    Raises:
        UserError: the task is not one of text, or its data can't be read.
    """
    device, report = resolve_device(config.device), shrink_report(made)
    section = ModelConfig(source=str(made))
    modality = build_modality(config.task, section, section, across_tokenizers=False)
    test = split(load_pool(config.task, config.seed), config.task, config.seed).test

    def score(place: str, layers: Sequence[int] | None = None) -> float:
        dtype = resolve_dtype("auto", device)
        model: Any = load_causal_lm(place, dtype, device=device.type).to(device)
        if layers is not None:
            prune_layers(model, layers)
        return evaluate(modality, model, test, config.evaluation.batch_size, "scoring").value

    whole = base_directory(source, None)
    scores = {"whole": score(whole)}
    if report.neurons is None:
        scores["cut"] = score(whole, report.layers)
    return scores | {"healed": score(str(made))}
