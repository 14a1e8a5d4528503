"""Whisper: tokens and rows by hand, and a tiny model of letters."""

import pytest
import torch
from tests.modalities.audio.clips import tone
from tests.modalities.audio.speech_models import whisper_directory
from tests.parties import add_adapter, fit

from fedcollm.config import ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.audio.transcripts import SpeechExample
from fedcollm.modalities.audio.whisper import WhisperTask

CPU = torch.device("cpu")
PROMPT = ("<|startoftranscript|>", "<|notimestamps|>")
A, B, C, END, START, NO_TIMES = 4, 5, 6, 7, 8, 9  # the tokens of " a", " b", " c", and the special ones


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    return whisper_directory(tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def task(place) -> WhisperTask:
    return WhisperTask("letters", place, longest=1.0, prompt=PROMPT, most_tokens=4)


def clip(name: str, text: str | None, hertz: float = 440) -> SpeechExample:
    return SpeechExample(name, tone(hertz, 0.3), text)


def load(task: WhisperTask, place: str):
    return task.load_model(ModelConfig(source=place, dtype="float32"), "slm", CPU, 0).eval()


def test_rows_are_the_tokens_of_the_transcript_and_its_end(task):
    batch = task.collate([clip("x", "a b"), clip("y", "c"), clip("z", None)])
    assert batch.tokens.tolist() == [[START, NO_TIMES, A, B], [START, NO_TIMES, C, END], [START, NO_TIMES, END, END]]
    assert batch.rows.int().tolist() == [[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0]]
    assert task.targets(batch).tolist() == [A, B, END, C, END, -100]
    assert task.labelled(batch) == 5


def test_long_transcripts_are_cut_and_counted(task):
    assert task.collate([clip("x", "a b c a b")]).targets.tolist() == [A, B, C, END]
    assert task.notes() == ["transcripts of more than 4 tokens, which are cut off there: 1"]


def test_encoder_is_cut_to_the_longest_clip_and_keeps_its_first_positions(task, place):
    model, whole = load(task, place), WhisperTask("letters", place, longest=2.0, prompt=PROMPT)
    assert model.config.max_source_positions == 50
    before = load(whole, place).model.encoder.embed_positions.weight
    assert torch.equal(model.model.encoder.embed_positions.weight, before[:50])
    assert task.footprint(None, model.config) == (54, 4)


def test_logits_have_a_row_per_target_and_do_not_depend_on_the_batch(task, place):
    model, clips = load(task, place), [clip("x", "a b"), clip("y", "c", 880)]
    both = task.logits(model, task.collate(clips))
    assert both.shape == (5, 10)
    torch.testing.assert_close(both[3:], task.logits(model, task.collate(clips[1:])), atol=1e-5, rtol=1e-5)


def test_what_is_heard_is_what_teacher_forcing_finds_likeliest(task, place):
    clips = [clip("x", "a b", 300), clip("y", "c", 3_000)]
    model = load(task, place)
    fit(task, model, clips, seed=0, epochs=60, batch_size=2, learning_rate=1e-2)
    assert [text.strip() for text in task.hear(model, clips)] == ["a b", "c"]
    score = task.score(model, clips)
    assert score.sums == {"words": 3.0, "wer": 0.0, "cer": 0.0}
    assert score.counts == {"words": 3, "wer": 3, "cer": 4}


def test_adapter_learns_and_hears(task, place):
    clips = [clip("x", "a b", 300), clip("y", "c", 3_000)]
    model = add_adapter(load(task, place), rank=4, causal_lm=False)
    first, last = (fit(task, model, clips, seed=i, epochs=5, batch_size=2, learning_rate=1e-2) for i in range(2))
    assert last < first
    assert task.score(model, clips).count == 2


def test_models_with_different_tokens_are_refused(place, tmp_path):
    with pytest.raises(UserError, match="'c' is column 3 of the SLM and column missing"):
        WhisperTask("letters", place, whisper_directory(tmp_path / "other", words=("a", "b", "d")), longest=1.0)
    pair = WhisperTask("letters", place, whisper_directory(tmp_path / "large", 24), longest=1.0, prompt=PROMPT)
    assert pair.of("llm").options["source"] == str(tmp_path / "large")


def test_clips_longer_than_the_model_takes_are_refused(place):
    with pytest.raises(UserError, match=r"clips of 31 s"):
        WhisperTask("letters", place, longest=31.0)


@pytest.mark.parametrize("text", ["<|endoftext|>", "＜｜endoftext｜＞", "a <|startoftranscript|> b"])
def test_special_tokens_in_a_transcript_are_plain_words(task, text):
    written = task.collate([clip("x", text)]).targets.tolist()
    assert START not in written
    assert written[-1] == END
    assert task.collate([clip("x", text.replace("<|", "").replace("|>", ""))]).targets.tolist() == written


def test_special_tokens_of_letters_are_plain_words_too(tmp_path):
    task = WhisperTask("t", whisper_directory(tmp_path / "model"), longest=1.0)
    task.tokenizer.add_special_tokens({"additional_special_tokens": ["abc"]})
    special = task.tokenizer.convert_tokens_to_ids("abc")
    assert special not in task.collate([clip("x", "abc")]).targets.tolist()


def test_no_more_tokens_are_written_than_the_decoder_reads(tmp_path, place):
    # 2 s would allow 28 tokens, but the decoder has 20 positions and the prompt takes its part of them
    task = WhisperTask("words", place, longest=2.0)
    assert task.most_tokens == 20 - len(task.prompt) + 1
    model = task.load_model(ModelConfig(source=place, dtype="float32"), "slm", torch.device("cpu"), 0)
    torch.nn.init.zeros_(model.proj_out.weight)  # never the end
    assert len(task.hear(model.eval(), [SpeechExample("x", tone(300, 0.5), "a b")])) == 1
