"""Zero-shot accuracy of a model before it was cut, after it was cut, and after it was healed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedcollm.config import ModelConfig, RunConfig
from fedcollm.data.catalogue import base_models, build_modality, load_pool
from fedcollm.data.partition import split
from fedcollm.errors import UserError
from fedcollm.models.adapters import add_adapter, resolve_device
from fedcollm.models.fused.patch import fuse
from fedcollm.models.pruning import prune_layers, rebuilt
from fedcollm.runs.build_models import set_backends
from fedcollm.runs.shrink import shrink_report
from fedcollm.training.fine_tuning import evaluate


def load_examples(config: RunConfig) -> Sequence[Any]:
    """Return the test examples of a task, the same as those of a run with this configuration.

    Raises:
        UserError: the task is not one of text, or its data can't be read.
    """
    if not base_models(config.task).causal_lm:
        raise UserError(
            f"task {config.task.name}: its models are no language models, so it can't score any. Give a task of text."
        )
    return split(load_pool(config.task, config.seed), config.task, config.seed).test


def zero_shot(config: RunConfig, examples: Sequence[Any], source: str, made: Path) -> dict[str, float]:
    """Score the whole, the cut and the healed model on a task's test examples, as a run scores its SLM in round 0.

    Args:
        config: gives the task, the device, the batch size of scoring and the dtype of the SLM.
        examples: the test examples, from `load_examples`.
        source: source of the whole model.
        made: directory of the model that `shrunk` made of it.

    Returns:
        The main metric by `whole`, `cut` and `healed`. `cut` is missing if MLPs lost neurons, since what was cut can't
        be made again without measuring it again.
    """
    device, report = resolve_device(config.device), shrink_report(made)
    same = ModelConfig(source=str(made))
    modality = build_modality(config.task, same, same, across_tokenizers=False).of("slm")
    set_backends(config)

    def score(place: str, layers: Sequence[int] | None = None) -> float:
        section = ModelConfig(source=place, dtype=config.slm.dtype)
        network = modality.load_model(section, "slm", device, config.seed)
        if layers is not None:
            network = rebuilt(prune_layers(network, layers))
        model = add_adapter(network, base_name=place)  # without effect before it is trained, except on the rounding
        fuse(model)
        return evaluate(modality, model, examples, config.evaluation.batch_size, "scoring").value

    scores = {"whole": score(source)}
    if report.neurons is None:
        scores["cut"] = score(source, report.layers)
    return scores | {"healed": score(str(made))}
