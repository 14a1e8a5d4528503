"""Clips: one row of logits each, by hand on a model whose logits are the first sample times a vector."""

import math

import pytest
import torch
from tests.modalities.audio.clips import FirstSample, Scaled, constant, tone
from tests.parties import fit

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.audio.classification import AudioExample, AudioTask
from fedcollm.modalities.audio.features import LogMel
from fedcollm.modalities.base import UNLABELLED

CLASSES = ("a", "b", "c")


def task() -> AudioTask:
    return AudioTask("clips", CLASSES, FirstSample())


def clip(name: str, value: float, label: str | None) -> AudioExample:
    return AudioExample(name, constant(value), label, classes=CLASSES)


CLIPS = [clip("x", 0.5, "a"), clip("y", -0.5, "c"), clip("z", 0.25, None)]


def test_batch_has_clips_and_columns_in_order():
    one = task()
    batch = one.collate(CLIPS)
    assert [samples[0].item() for samples in batch.clips] == [0.5, -0.5, 0.25]
    assert one.targets(batch).tolist() == [0, 2, UNLABELLED]
    assert one.labelled(batch) == 2


def test_logits_have_a_row_per_clip_in_float32():
    for dtype in (torch.float32, torch.bfloat16):
        logits = task().logits(Scaled([4.0, 2.0, 0.0], dtype), task().collate(CLIPS))
        assert logits.dtype == torch.float32
        assert logits.tolist() == [[2.0, 1.0, 0.0], [-2.0, -1.0, 0.0], [1.0, 0.5, 0.0]]


def test_each_role_has_its_own_features_and_one_reader():
    pair = AudioTask("clips", CLASSES, FirstSample(1.0), FirstSample(3.0))
    batch, model = pair.collate(CLIPS[:1]), Scaled([1.0, 2.0, 4.0])
    assert pair.of("slm").logits(model, batch).tolist() == [[0.5, 1.0, 2.0]]
    assert pair.of("llm").logits(model, batch).tolist() == [[1.5, 3.0, 6.0]]
    assert pair.of("llm").reader is pair.reader
    assert [pair.of(role).options["factor"] for role in ("slm", "llm")] == [1.0, 3.0]
    assert task().of("llm").options == task().options


def test_models_with_two_sampling_rates_are_refused():
    with pytest.raises(UserError, match=r"16000 Hz .* 8000 Hz"):
        AudioTask("clips", CLASSES, FirstSample(), FirstSample(rate=8_000))


def test_longest_clip_is_that_of_both_models():
    assert AudioTask("clips", CLASSES, LogMel(8, 30), LogMel(8, 20)).reader.longest == 0.2


def test_score_counts_the_clips_whose_largest_logit_is_their_class():
    score = task().score(Scaled([4.0, 2.0, 0.0]), [*CLIPS[:2], clip("w", 0.125, "b")])
    assert (score.sums, score.count) == ({"acc": 2.0}, 3)
    assert score.outcomes == {"x": 1.0, "y": 1.0, "w": 0.0}
    assert score.confusion == {("a", "a"): 1, ("c", "c"): 1, ("b", "a"): 1}


def test_probabilities_are_the_softmax_of_the_logits():
    found = task().probabilities(Scaled([2 * math.log(3), 0.0, 0.0]), CLIPS[:1])
    torch.testing.assert_close(found[0], torch.tensor([0.6, 0.2, 0.2]))  # 3 : 1 : 1


def test_size_is_the_number_of_samples():
    assert task().size(CLIPS[0]) == 1_600


def test_unknown_label_is_refused():
    with pytest.raises(UserError, match=r"v: label 'd' .* a, b, c"):
        task().collate([clip("v", 0.5, "d")])


def test_labels_change_and_content_stays():
    other = CLIPS[0].with_answer(1)
    assert (other.label, CLIPS[0].without_label().label) == ("b", None)
    assert other.content == CLIPS[0].content == CLIPS[0].without_label().content
    assert other.content != CLIPS[1].content


def test_notes_are_those_of_the_reader():
    one = task()
    one.collate([AudioExample("long", tone(440, 1.5), None)])
    assert one.notes() == ["recordings longer than 1 s: they are cut off there: 1"]


def test_model_with_another_number_of_classes_is_refused():
    with pytest.raises(UserError, match="20 classes"):
        task().load_model(ModelConfig(source="ast-words-small"), "slm", torch.device("cpu"), 0)


def test_shipped_model_learns_to_tell_two_tones_apart():
    classes = [str(i) for i in range(20)]
    notes = AudioTask("notes", classes, LogMel(16, 96))
    model = notes.load_model(ModelConfig(source="ast-words-small", dtype="float32"), "slm", torch.device("cpu"), 0)
    clips = [AudioExample(f"{i}-{j}", tone(hertz * (1 + i / 100), 0.3), str(j))
             for i in range(4) for j, hertz in enumerate((300, 3_000))]  # fmt: skip
    fit(notes, model, clips, seed=0, epochs=15, batch_size=8, learning_rate=3e-3)
    assert notes.score(model, clips).value == 1.0


def test_examples_travel_as_lines_with_their_recordings(tmp_path):
    clip = AudioExample("x", constant(0.5), "b", "north", CLASSES)
    (tmp_path / "train.jsonl").write_text(task().write_examples([clip]))
    (again,) = task().read_examples(tmp_path / "train.jsonl")
    assert (again.id, again.label, again.group, again.classes) == ("x", "b", "north", CLASSES)
    assert again.content == clip.content
    assert task().facts() == {"classes": list(CLASSES), "milliseconds": 1_000}
