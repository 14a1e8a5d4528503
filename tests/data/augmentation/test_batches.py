"""What makes the batches of an epoch, and what is said of it."""

import pytest
from tests.modalities.audio.clips import FirstSample

from fedcollm.config.augmentation import AUGMENTATIONS, AugmentationConfig
from fedcollm.data.augmentation import batches
from fedcollm.data.augmentation.audio import AUDIO
from fedcollm.data.augmentation.images import IMAGES
from fedcollm.data.augmentation.text import TEXT
from fedcollm.errors import UserError
from fedcollm.modalities.audio.classification import AudioTask
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.vision.task import ImageTask


def test_tables_of_functions_have_the_names_of_the_configuration_in_its_order():
    tables = {"text": TEXT, "images": IMAGES, "audio": AUDIO}
    assert {name: list(table) for name, table in tables.items()} == {
        name: list(table) for name, table in AUGMENTATIONS.items()
    }


def test_without_augmentation_the_modality_itself_makes_the_batches():
    task = ImageTask("digits", "ab")
    assert batches.epoch_batches(task, None, 0, 0) is task
    for one in (task, AudioTask("words", ("yes", "no"), FirstSample())):
        assert batches.epoch_batches(one, AugmentationConfig(kinds={"crop": 1}), 0, 0) is not one


def test_own_modality_and_kinds_that_nobody_named_are_refused():
    class Own(ImageTask):
        """Not told apart from images: its examples are theirs."""

    section = AugmentationConfig(kinds={"crop": 1})
    assert batches.check(Own("own", "ab"), section) is None
    with pytest.raises(UserError, match="modality of your own"):
        batches.check(object(), section)
    assert batches.check(object(), None) is None
    with pytest.raises(UserError, match="kinds"):
        batches.epoch_batches(ImageTask("digits", "ab"), AugmentationConfig(), 0, 0)


def test_notes_count_the_examples_that_can_be_changed():
    listed = TextExample("1", "red or blue?", ("red", "blue"), 0, ("A", "B"))
    other = TextExample("A00.0", "sky?", ("red", "blue"), 1, ("A", "B"), paraphrases=("heaven?",))
    kinds = {"paraphrase": 0.5, "synonym": 1, "choice_order": 0.25, "word_dropout": 0.1}
    assert batches.notes(AugmentationConfig(kinds=kinds), [listed, other, other]) == [
        "client.augmentation changes private examples anew in every epoch, with these probabilities: paraphrase (0.5), "
        "synonym (1), choice_order (0.25), word_dropout (0.1)",
        "paraphrase can change 2 of 3 private examples",
        "synonym can change 2 of 3 private examples",
        "choice_order can change 1 of 3 private examples",
    ]
    assert batches.notes(None, [listed]) == []
