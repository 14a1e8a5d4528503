"""Rules that refuse combinations of keys with `task.cleaning`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedcollm.config.run import RunConfig


def cleaning(config: "RunConfig") -> Iterator[str]:
    """Yield what `task.cleaning` can't be combined with."""
    task, privacy, section = config.task, config.federation.privacy, config.task.cleaning
    if section is None:
        return
    if section.compares and privacy is not None and privacy.level == "example":
        yield (
            "task.cleaning: duplicates and wrong labels are found by comparing examples, so that one example decides "
            "whether others are trained on, and federation.privacy at level example would not hold. Set "
            "task.cleaning.duplicates: keep and task.cleaning.labels: keep"
        )
    if section.labels != "keep" and task.no_choices is not None:
        yield (
            f"task.cleaning.labels {section.labels} needs classes, but {task.no_choices} have none. Set "
            "task.cleaning.labels: keep"
        )
    if section.personal == "mask" and not task.is_text:
        yield f"task.cleaning.personal: mask is for text, and {task.name} has none. Set task.cleaning.personal: keep"
