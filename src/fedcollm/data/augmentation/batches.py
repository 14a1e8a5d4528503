"""The batches of a client's training: as its examples are, or with the augmentations of each epoch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from fedcollm.config.augmentation import AugmentationConfig
from fedcollm.data.augmentation.audio import AudioBatches
from fedcollm.data.augmentation.draws import Draws
from fedcollm.data.augmentation.images import ImageBatches
from fedcollm.data.augmentation.listings import find_listing
from fedcollm.data.augmentation.text import TextBatches, question, synonyms
from fedcollm.errors import UserError
from fedcollm.modalities.audio.classification import AudioTask
from fedcollm.modalities.audio.speech import SpeechTask
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.task import TextTask
from fedcollm.modalities.vision.detection import DetectionTask
from fedcollm.modalities.vision.task import ImageTask


class Batches(Protocol):
    """Makes batches of examples of similar size; every modality does."""

    def size(self, example: Any) -> int:
        """Return the size of one example, such as its number of tokens."""
        ...

    def collate(self, examples: Sequence[Any]) -> Any:
        """Return one batch."""
        ...


#: Class of a modality to what makes its batches with augmentations.
_BATCHES: Mapping[type[Modality], Callable[[Any, Draws], Batches]] = {
    TextTask: TextBatches,
    ImageTask: ImageBatches,
    DetectionTask: ImageBatches,
    AudioTask: AudioBatches,
    SpeechTask: AudioBatches,
}


def check(modality: Modality, section: AugmentationConfig | None) -> None:
    """Check that a client's modality can be augmented.

    Raises:
        UserError: it is a modality of one's own.
    """
    if section is not None:
        _maker(modality)


def epoch_batches(modality: Modality, section: AugmentationConfig | None, seed: int, epoch: int) -> Batches:
    """Return what makes the batches of one epoch: the modality itself without augmentation.

    What an example becomes depends on the seed, the epoch and the example alone: on its id, or on the digest of a
    recording.

    Args:
        modality: the client's modality.
        section: the augmentations, with their kinds named; None for none.
        seed: seed of the client's round.
        epoch: number of the epoch within the round, starting at 0.

    Raises:
        UserError: the modality can't be augmented, or no kinds are named.
    """
    if section is None:
        return modality
    if section.kinds is None:
        raise UserError(
            "client.augmentation.kinds: null stands for what suits the task, which is unknown here. Name some."
        )
    return _maker(modality)(modality, Draws(section.kinds, section.strength, seed, epoch))


def _maker(modality: Modality) -> Callable[[Any, Draws], Batches]:
    found = [make for kind, make in _BATCHES.items() if isinstance(modality, kind)]
    if not found:
        raise UserError(
            f"client.augmentation: {type(modality).__name__} is a modality of your own, whose examples can't be "
            "changed here. Change them in its collate, or set client.augmentation: null."
        )
    return found[0]


def notes(section: AugmentationConfig | None, examples: Sequence[Any]) -> list[str]:
    """Return sentences about what is changed, and how many examples it can change, for the record and the screen.

    Args:
        section: the augmentations, with their kinds named; None for none.
        examples: the private examples of all clients that are known.
    """
    if section is None:
        return []
    kinds = section.kinds or {}
    named = ", ".join(f"{name} ({probability:g})" for name, probability in kinds.items())
    texts = [example for example in examples if isinstance(example, TextExample)]
    counts = {name: sum(map(has, texts)) for name, has in _APPLIES.items() if name in kinds and texts}
    return [
        f"client.augmentation changes private examples anew in every epoch, with these probabilities: {named}",
        *(f"{name} can change {count:,} of {len(texts):,} private examples" for name, count in counts.items()),
    ]


#: Augmentation that some examples can't have to whether one can.
_APPLIES: Mapping[str, Callable[[TextExample], bool]] = {
    "paraphrase": lambda example: bool(example.paraphrases),
    "synonym": lambda example: bool(synonyms(example)),
    "choice_order": lambda example: find_listing(question(example), example) is not None,
}
