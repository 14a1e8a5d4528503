"""CTC: frames, letters and losses by hand, and a tiny wav2vec2."""

import math

import pytest
import torch
from tests.modalities.audio.clips import tone
from tests.modalities.audio.speech_models import LETTERS, ctc_directory
from tests.parties import add_adapter, fit

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.audio.ctc import CtcTask
from fedcollm.modalities.audio.transcripts import SpeechExample

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    return ctc_directory(tmp_path_factory.mktemp("ctc"))


@pytest.fixture
def task(place) -> CtcTask:
    return CtcTask("letters", place, longest=2.0)


def clip(name: str, text: str | None, seconds: float = 0.1, hertz: float = 440) -> SpeechExample:
    return SpeechExample(name, tone(hertz, seconds), text)


def load(task: CtcTask, place: str):
    return task.load_model(ModelConfig(source=place, dtype="float32"), "slm", CPU, 0).eval()


def test_frames_are_those_of_the_network(task, place):
    # (1600 - 16) // 8 + 1 = 199, (199 - 40) // 40 + 1 = 4
    assert task.frames(1_600) == 4
    assert task.frames(10) == 0
    model, batch = load(task, place), task.collate([clip("x", "a", 0.1), clip("y", "b", 0.3)])
    assert batch.frames == [4, 14]
    assert task.logits(model, batch).shape == (18, 8)
    assert task.footprint(clip("x", "a"), None) == (4, 4)


def test_rows_do_not_depend_on_padding(task, place):
    model, short, long = load(task, place), clip("x", "a", 0.1), clip("y", "b", 0.3)
    alone, both = (task.logits(model, task.collate(part)) for part in ([short], [short, long]))
    torch.testing.assert_close(alone, both[:4], atol=1e-4, rtol=1e-4)


def test_letters_are_looked_up_in_both_cases_and_others_are_left_out(task):
    batch = task.collate([clip("x", "A b!", 0.2), clip("y", "axé", 0.2), clip("z", None), clip("w", "cab", 0.2)])
    a, b, c, bar = (LETTERS.index(letter) for letter in "ABC|")
    assert [letters if letters is None else letters.tolist() for letters in batch.letters] == [
        [a, bar, b], [a], None, [c, a, b],
    ]  # fmt: skip
    assert task.notes() == ["transcripts with characters that the vocabulary lacks, which are left out: 1"]


def test_transcript_with_more_letters_than_frames_teaches_nothing(task):
    batch = task.collate([clip("x", "abca"), clip("y", "abcab"), clip("z", "aab"), clip("w", "aabb"), clip("v", "xyz")])
    assert [letters is not None for letters in batch.letters] == [True, False, True, False, False]
    assert task.labelled(batch) == 2
    assert task.targets(batch).tolist() == [-100] * 20
    assert task.notes()[-1].endswith("which teach nothing: 3")


def test_loss_is_the_negative_log_likelihood_per_letter(task):
    batch = task.collate([clip("x", "a"), clip("y", None)])
    logits = torch.zeros(8, 8, requires_grad=True)
    # 4 frames: a path of blanks and one run of A, of which there are 4 + 3 + 2 + 1; each has a probability of 8^-4
    loss = task.loss(logits, batch)
    assert loss.item() == pytest.approx(-math.log(10 / 8**4), rel=1e-5)
    loss.backward()
    assert logits.grad[:4].abs().max() > 0
    assert logits.grad[4:].abs().max() == 0


def test_loss_without_labels_is_zero_with_a_zero_gradient(task):
    logits = torch.ones(4, 8, requires_grad=True)
    loss = task.loss(logits, task.collate([clip("y", None)]))
    loss.backward()
    assert (loss.item(), logits.grad.abs().max().item()) == (0.0, 0.0)


def test_path_is_decoded(task):
    a, b, bar = (LETTERS.index(letter) for letter in "AB|")
    assert task.decode(torch.tensor([0, a, a, 0, a, bar, bar, b, 2, 0])) == "AA B"


def test_both_roles_have_their_own_features_and_share_the_rest(place, tmp_path):
    pair = CtcTask("letters", place, ctc_directory(tmp_path / "large", 24))
    assert pair.of("llm").reader is pair.reader
    assert pair.of("llm").options["source"] == str(tmp_path / "large")
    assert pair.of("llm").decode(torch.tensor([5])) == "A"
    assert pair.of("slm") is pair


def test_models_that_differ_are_refused_by_what_differs(place, tmp_path):
    with pytest.raises(UserError, match="'C' is column 7"):
        CtcTask("letters", place, ctc_directory(tmp_path / "letters", letters=[*LETTERS[:-1], "D"]))
    with pytest.raises(UserError, match="different frames"):
        CtcTask("letters", place, ctc_directory(tmp_path / "frames", stride=20))
    with pytest.raises(UserError, match=r"nowhere.*CTC"):
        CtcTask("letters", str(tmp_path / "nowhere"))


def test_tiny_model_learns_with_an_adapter_and_equal_seeds_give_equal_bits(task, place):
    clips = [
        clip(f"{text}{i}", text, 0.2, hertz + 10 * i) for i in range(2) for text, hertz in (("a", 300), ("b", 3_000))
    ]
    losses = []
    for _ in range(2):
        model = add_adapter(load(task, place), rank=4, causal_lm=False, targets=["q_proj", "v_proj", "out_proj"])
        assert not model.config.apply_spec_augment
        losses.append([fit(task, model, clips, seed=i, epochs=3, batch_size=4, learning_rate=1e-2) for i in range(2)])
    assert losses[0] == losses[1]
    assert losses[0][1] < losses[0][0]
    score = task.score(model, clips)
    assert score.counts == {"words": 4, "wer": 4, "cer": 4}
