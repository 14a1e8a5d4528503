"""The section `client.augmentation`: names, probabilities, defaults and refusals."""

import pytest

from fedcollm.config import RunConfig, TaskConfig
from fedcollm.config.augmentation import AUGMENTATIONS, AugmentationConfig, defaults, modality_of, with_kinds
from fedcollm.config.loading import load_config
from fedcollm.data.catalogue import TASKS, modality_kind
from fedcollm.errors import UserError


def own(**format) -> TaskConfig:
    return TaskConfig(name="custom", format=format)


def test_names_of_augmentations_are_distinct():
    names = [name for table in AUGMENTATIONS.values() for name in table]
    assert len(names) == len(set(names))


def test_every_task_that_ships_has_the_modality_of_its_entry():
    modalities = {"text": "text", "image": "images", "shapes": "images", "audio": "audio"}
    for name in TASKS.keys() - {"custom"}:
        task = TaskConfig(name=name)
        assert modality_of(task) == modalities[modality_kind(task)]
        assert defaults(task).keys() <= AUGMENTATIONS[modality_of(task)].keys()


def test_defaults_keep_the_label_of_every_task():
    assert "flip" not in defaults(TaskConfig(name="digits"))
    assert defaults(own(prompt="{a}", answer="b")) == {"choice_order": 0.5}
    paraphrased = own(prompt="{a}", answer="b", paraphrases=["{a}?"])
    assert defaults(paraphrased) == {"paraphrase": 0.5, "choice_order": 0.5}
    assert defaults(own(image="a", answer="b")) == {"crop": 0.5, "color": 0.5}
    assert defaults(own(boxes="coco")) == {"crop": 0.5, "color": 0.5}
    assert "shift" not in defaults(own(audio="a", transcript="b"))
    assert defaults(own(prompt="{a}", answer="b").model_copy(update={"name": "icd10"})) == {"choice_order": 0.5}


def test_kinds_are_filled_in_once():
    filled = with_kinds(AugmentationConfig(strength=2), TaskConfig(name="digits"))
    assert filled == AugmentationConfig(kinds={"crop": 0.5}, strength=2)
    named = AugmentationConfig(kinds={"flip": 1})
    assert with_kinds(named, TaskConfig(name="digits")) is named
    assert with_kinds(None, TaskConfig(name="digits")) is None


def test_list_of_names_has_the_usual_probability():
    assert AugmentationConfig.model_validate({"kinds": ["crop", "flip"]}).kinds == {"crop": 0.5, "flip": 0.5}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"client.augmentation.kinds": {"crop": 1}}, "crop is for images, and icd10 has text"),
        ({"client.augmentation.kinds": {"croop": 1}}, "did you mean 'crop'"),
        ({"client.augmentation.kinds": {"word_dropout": 1.5}}, "word_dropout: 1.5"),
        ({"client.augmentation.kinds": {"word_dropout": -0.5}}, "word_dropout: -0.5"),
        ({"client.augmentation.kinds": {"word_dropout": float("nan")}}, "word_dropout: nan"),
        ({"client.augmentation.kinds": {}}, "at least one"),
        ({"client.augmentation.kinds": "crop"}, "by name"),
        ({"client.augmentation.strength": 0}, "strength: 0"),
        ({"client.augmentation.kinds": {"paraphrase": 1}}, "task.format.paraphrases"),
        ({"client.augmentation.kinds": {"synonym": 1}, "task.name": "arc_easy"}, "icd10"),
        ({"task.format": {"prompt": "{a}", "answer": "b", "paraphrases": ["{a}!"]}}, "client.augmentation"),
        ({"task.format": {"prompt": "{a}", "answer": "b", "paraphrases": []}}, "at least one"),
        ({"task.format": {"image": "a", "answer": "b", "paraphrases": ["{a}!"]}}, "paraphrases is for text"),
        (
            {
                "client.augmentation": {},
                "federation.aggregation": "uniform",
                "federation.privacy": {
                    "level": "example", "clip": 1, "noise_multiplier": 1, "delta": 1e-5, "sampling_rate": 0.1
                },
            },
            "DP-SGD",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(values, words):
    with pytest.raises(UserError, match=words):
        load_config(RunConfig().model_dump(), **values)
