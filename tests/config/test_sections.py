"""What the sections of a configuration say beside their keys."""

import pytest

from fedcollm.config import EvaluationConfig, FederationConfig, FormatConfig


@pytest.mark.parametrize(("rounds", "every", "expected"), [(1, 1, [1]), (3, 1, [1, 2, 3]), (4, 3, [3, 4]), (2, 9, [2])])
def test_the_last_round_is_always_scored(rounds, every, expected):
    evaluation = EvaluationConfig(every=every)
    assert [index for index in range(1, rounds + 1) if evaluation.scores(index, rounds)] == expected


@pytest.mark.parametrize(("clients", "expected"), [("every", [2, 4, 5]), ("last", [5]), ("never", [])])
def test_clients_are_scored_in_scored_rounds_only(clients, expected):
    evaluation = EvaluationConfig(every=2, clients=clients)
    assert [index for index in range(1, 6) if evaluation.scores_clients(index, 5)] == expected


@pytest.mark.parametrize(
    ("keys", "kind", "folders", "free"),
    [
        ({"prompt": "{a}", "answer": "b"}, "text", False, True),
        ({"prompt": "{a}", "answer": "b", "choices": "c"}, "text", False, False),
        ({"image": "a", "answer": "b"}, "image_files", False, False),
        ({"choices": ["x", "y"]}, "image_files", True, False),
        ({"audio": "a", "answer": "b", "choices": ["x", "y"]}, "audio_files", False, False),
        ({"audio": "a", "transcript": "b", "language": "en"}, "speech_files", False, True),
        ({"boxes": "coco", "group": "ward", "choices": ["x"]}, "object_files", False, False),
        ({"boxes": "voc"}, "object_files", False, False),
    ],
)
def test_a_format_is_of_text_images_or_audio(keys, kind, folders, free):
    format = FormatConfig(**keys)
    assert (format.kind, format.is_folders, format.is_free) == (kind, folders, free)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"prompt": "{a}", "image": "b", "answer": "c"}, "prompt is for text"),
        ({"prompt": "{a}"}, "answer is missing"),
        ({"image": "a"}, "answer is missing"),
        ({"answer": "b"}, "in class folders"),
        ({"group": "b"}, "in class folders"),
        ({"image": "a", "answer": "b", "choices": "c"}, "choices 'c' is a column, but all images"),
        ({"audio": "a", "answer": "b", "choices": "c"}, "choices 'c' is a column, but all recordings"),
        ({"image": "a", "audio": "b", "answer": "c"}, "image is for images and audio 'b' for audio"),
        ({"audio": "a"}, "answer is missing.*or transcript"),
        ({"audio": "a", "answer": "b", "transcript": "c"}, "Remove one of them"),
        ({"audio": "a", "transcript": "c", "choices": ["x", "y"]}, "a transcript is free text"),
        ({"audio": "a", "answer": "c", "language": "en"}, "'en' is for speech recognition"),
        ({"image": "a", "answer": "b", "transcript": "c"}, "are for audio"),
        ({"audio": "a", "answer": "b", "longest_seconds": 0.5}, "greater than or equal to 1"),
        ({"image": "a", "answer": "b", "choices": "c"}, "choices 'c' is a column"),
        ({"boxes": "coco", "image": "a"}, "Remove image 'a'"),
        ({"boxes": "coco", "answer": "a"}, "Remove answer 'a'"),
        ({"boxes": "voc", "prompt": "{a}"}, "Remove prompt"),
        ({"boxes": "coco", "choices": "c"}, "choices 'c' is a column"),
        ({"boxes": "voc", "group": "ward"}, "group 'ward'"),
    ],
)
def test_a_format_of_both_or_neither_is_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        FormatConfig(**keys)


@pytest.mark.parametrize(
    ("values", "warned"),
    [
        ({}, False),
        ({"secure_aggregation": True}, True),
        ({"secure_aggregation": True, "participants": []}, False),  # there are no clients
        (
            {
                "secure_aggregation": True,
                "privacy": {"level": "client", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5},
            },
            False,
        ),
    ],
)
def test_secure_aggregation_without_privacy_is_warned_of(values, warned):
    warning = FederationConfig.model_validate(values).warning
    assert (warning is not None) == warned
    assert warning is None or "one client's data" in warning
