"""How long the examples of a run are, for `fedcollm check`."""

import hashlib
from itertools import chain
from pathlib import Path
from typing import Any

from fedcollm.config import RunConfig
from fedcollm.data.catalogue import build_modality
from fedcollm.data.pool import Split
from fedcollm.modalities.base import Modality
from fedcollm.models.pretrained import SHIPPED, base_directory
from fedcollm.runs.identity import digest_of
from fedcollm.storage import cached_json

#: Endings of the files of a model that say how it reads examples; weights are none of them.
_READING = (".json", ".txt", ".model", ".jinja")


def measured_lengths(
    config: RunConfig, modality: Modality | None, parts: Split
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Return the lengths of a run's examples, and what the modality says of them, such as how many are cut.

    They are kept in the cache, so that a second `check` loads no tokenizer.

    Args:
        config: the run's configuration.
        modality: the user's own modality; by default that of the task, which is built if the cache has no lengths.
        parts: the run's examples.

    Raises:
        UserError: an example can't be used with these models, or the two models don't fit together.
    """
    across = config.server.distillation.across_tokenizers

    def measure() -> list[Any]:
        known = modality or build_modality(config.task, config.slm, config.llm, across)
        return [lengths(known, parts), known.notes()]

    if modality is not None:
        found, notes = measure()
    else:
        examples = digest_of(chain(parts.public, parts.test, *parts.private.values()))
        models = [_reading(source) for source in (config.slm.source, config.llm.source)]
        made_of = [2, examples, models, across, config.task.model_dump(mode="json")]
        found, notes = cached_json("lengths", made_of, measure)
    return found, notes


def _reading(source: str) -> list[str]:
    """Return the name of a model, with the digests of the files that say how it reads examples if it is on disk."""
    place = Path(base_directory(source, None) if source in SHIPPED or source.endswith(".gguf") else source)
    files = sorted(file for file in place.iterdir() if file.suffix in _READING) if place.is_dir() else []
    return [source, *(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files)]


def lengths(modality: Modality, split: Split) -> dict[str, dict[str, int]]:
    """Return the median, the 95th percentile and the largest of each length of the examples of a run.

    Args:
        modality: says which lengths an example has.
        split: the run's examples.

    Returns:
        Name of a length to "median", "95 %" and "longest"; lengths that are the same for all examples are left out.

    Raises:
        UserError: an example can't be used with these models.
    """
    values: dict[str, list[int]] = {}
    examples: chain[Any] = chain(split.public, split.test, *split.private.values())
    for example in examples:
        for name, value in modality.lengths(example).items():
            values.setdefault(name, []).append(value)
    return {name: _summary(sorted(some)) for name, some in values.items() if len(set(some)) > 1}


def _summary(ordered: list[int]) -> dict[str, int]:
    last = len(ordered) - 1
    return {"median": ordered[last // 2], "95 %": ordered[-(-95 * len(ordered) // 100) - 1], "longest": ordered[last]}
