"""The `client.augmentation` section of the configuration, and the table of what it can change in an example.

The functions are in `data/augmentation/`: one table per modality, with the names of the table here.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import Field, field_validator

from fedcollm.config.base import Section
from fedcollm.config.data import TaskConfig


@dataclass(frozen=True)
class Augmentation:
    """One way to change an example so that its label stays right.

    Attributes:
        comment: what it does.
        by_default: whether it is on if the configuration names none: only what keeps the label of every task.
    """

    comment: str
    by_default: bool = True


#: Modality to the names of its augmentations. They are applied in this order.
AUGMENTATIONS: Mapping[str, Mapping[str, Augmentation]] = {
    "text": {
        "paraphrase": Augmentation("another template of task.format.paraphrases", by_default=False),
        "synonym": Augmentation("icd10: another name of the same diagnosis", by_default=False),
        "choice_order": Augmentation("choices that the prompt lists change places; the label follows"),
        "word_dropout": Augmentation("a tenth of the words is left out", by_default=False),
    },
    "images": {
        "crop": Augmentation("another window, up to a fifth larger or smaller; boxes follow"),
        "flip": Augmentation("left and right change places; boxes follow", by_default=False),
        "vertical_flip": Augmentation("top and bottom change places; boxes follow", by_default=False),
        "color": Augmentation("another brightness, contrast and tint"),
        "cutout": Augmentation("a square of a quarter of the side gets the mean color", by_default=False),
    },
    "audio": {
        "speed": Augmentation("up to a tenth faster or slower"),
        "shift": Augmentation("up to 0.1 s earlier or later", by_default=False),
        "noise": Augmentation("noise of 10 to 30 dB below the signal"),
        "gain": Augmentation("up to 6 dB louder or softer"),
        "time_mask": Augmentation("silence in up to a tenth of the clip (SpecAugment)", by_default=False),
        "frequency_mask": Augmentation("a band of up to an eighth of the mel scale is removed (SpecAugment)"),
    },
}

#: Probability of an augmentation that is on without a number.
USUAL = 0.5

#: Tasks that ship with fedcollm and are no text, to their modality.
_MODALITIES: Mapping[str, str] = {"digits": "images", "shapes": "images", "spoken_words": "audio"}

#: Task that ships with fedcollm to what is on by default, where that is not what suits every task of its modality.
_OF_TASK: Mapping[str, tuple[str, ...]] = {
    "icd10": ("synonym", "word_dropout"),
    "digits": ("crop",),  # a mirrored digit is another sign, or none
    "shapes": ("crop", "flip", "vertical_flip", "color"),
}

#: Kind of the user's own files (`FormatConfig.kind`) to its modality.
_OF_FILES: Mapping[str, str] = {
    "text": "text",
    "image_files": "images",
    "object_files": "images",
    "audio_files": "audio",
    "speech_files": "audio",
}


def _listed() -> str:
    """Return the names of all augmentations, for the comment of the key."""
    return "; ".join(f"{modality}: {', '.join(table)}" for modality, table in AUGMENTATIONS.items())


def _names() -> list[str]:
    return [name for table in AUGMENTATIONS.values() for name in table]


class AugmentationConfig(Section):
    """How a client changes its own examples anew in every epoch, to learn more from few of them."""

    kinds: Annotated[
        dict[str, Annotated[float, Field(ge=0, le=1)]] | None,
        Field(
            description=f"name to probability, such as {{crop: {USUAL:g}}}, or names; null: what suits the task. "
            + _listed()
        ),
    ] = None
    strength: Annotated[float, Field(gt=0, le=3)] = 1.0
    """how much an example is changed, as a multiple of the usual amount"""

    @field_validator("kinds", mode="before")
    @classmethod
    def _with_probabilities(cls, kinds: Any) -> Any:
        """Take a list of names for these names with the usual probability, and refuse unknown names."""
        if isinstance(kinds, list | tuple):
            kinds = dict.fromkeys(map(str, cast("list[Any]", kinds)), USUAL)
        if kinds is None:
            return None
        if not isinstance(kinds, Mapping):
            raise ValueError("give probabilities by name, such as {crop: 0.5}, or a list of names")
        named = cast("Mapping[str, Any]", kinds)
        if not named:
            raise ValueError("name at least one augmentation, or set client.augmentation: null")
        for name in named:
            if name not in _names():
                near = difflib.get_close_matches(str(name), _names(), 1)
                raise ValueError(f"unknown augmentation {name!r}; " + _suggestion(near))
        return named


def _suggestion(near: list[str]) -> str:
    return f"did you mean {near[0]!r}?" if near else f"choose from {_listed()}"


def modality_of(task: TaskConfig) -> str:
    """Return the key of `AUGMENTATIONS` for a task.

    >>> modality_of(TaskConfig(name="digits"))
    'images'
    """
    if task.format is not None:
        return _OF_FILES[task.format.kind]
    return _MODALITIES.get(task.name, "text")


def defaults(task: TaskConfig) -> dict[str, float]:
    """Return the augmentations that suit a task, with their probabilities.

    >>> defaults(TaskConfig(name="digits"))
    {'crop': 0.5}
    """
    table = AUGMENTATIONS[modality_of(task)]
    kinds = [name for name, one in table.items() if one.by_default]
    if not task.is_own:
        kinds = list(_OF_TASK.get(task.name, kinds))
    if task.format is not None and task.format.paraphrases:
        kinds = ["paraphrase", *kinds]
    return dict.fromkeys(kinds, USUAL)


def with_kinds(section: AugmentationConfig | None, task: TaskConfig) -> AugmentationConfig | None:
    """Return the section with its augmentations named, so that a later version's defaults change no run."""
    if section is None or section.kinds is not None:
        return section
    return section.model_copy(update={"kinds": defaults(task)})


def refused(section: AugmentationConfig | None, task: TaskConfig) -> list[str]:
    """Return one message for each augmentation that a task can't have, and for paraphrases that nothing uses."""
    given = task.format.paraphrases if task.format is not None else None
    if section is None:
        unused = "task.format.paraphrases are for client.augmentation, which is null. Set client.augmentation: {}, or "
        return [unused + "remove the paraphrases"] if given else []
    modality, reasons = modality_of(task), list[str]()
    for name in section.kinds or {}:
        place = f"client.augmentation.kinds.{name}"
        if name not in AUGMENTATIONS[modality]:
            owner = next(other for other, table in AUGMENTATIONS.items() if name in table)
            what = f"{place} is for {owner}, and {task.name} has {modality}"
            reasons.append(f"{what}. Choose from {', '.join(AUGMENTATIONS[modality])}")
        elif name == "paraphrase" and not given:
            reasons.append(f"{place} needs other templates. Set task.format.paraphrases, or remove it")
        elif name == "synonym" and (task.is_own or task.name != "icd10"):
            reasons.append(
                f"{place} is for the task icd10, which comes with synonyms, and not for {task.name}. Remove it"
            )
    return reasons
