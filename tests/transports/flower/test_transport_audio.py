"""Audio over a network in memory: the same bits as in this process, and as after an interruption."""

import pytest
from tests.modalities.audio.clips import tone
from tests.modalities.audio.speech_models import ctc_directory, whisper_directory
from tests.transports.flower.test_transport import told
from tests.transports.small_federation import Small, identical

from fedcollm.config.loading import load_config
from fedcollm.data.pool import Pool
from fedcollm.messages import ClientUpdate
from fedcollm.modalities.audio.classification import AudioExample, AudioTask
from fedcollm.modalities.audio.ctc import CtcTask
from fedcollm.modalities.audio.models import features_of
from fedcollm.modalities.audio.transcripts import SpeechExample
from fedcollm.modalities.audio.whisper import WhisperTask
from fedcollm.runs import directory as run_directory
from fedcollm.runs.runner import run

KINDS = ("classification", "ctc", "whisper")
NOTES = {"a": 300, "b": 1_000, "c": 3_000}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, dict[str, str]]:
    """The sources of both roles by kind."""
    place = tmp_path_factory.mktemp("audio")
    return {
        "classification": {"slm": "ast-words-small", "llm": "ast-words-large"},
        "ctc": {"slm": ctc_directory(place / "ctc-s"), "llm": ctc_directory(place / "ctc-l", 24)},
        "whisper": {"slm": whisper_directory(place / "whisper-s"), "llm": whisper_directory(place / "whisper-l", 24)},
    }


def modality_of(kind: str, sources: dict[str, str]):
    """A modality as each party makes it for itself."""
    if kind == "classification":
        classes = [*NOTES, *map(str, range(17))]
        return AudioTask("notes", classes, features_of(sources["slm"]), features_of(sources["llm"]))
    if kind == "ctc":
        return CtcTask("notes", sources["slm"], sources["llm"], longest=1.0)
    prompt = ("<|startoftranscript|>", "<|notimestamps|>")
    return WhisperTask("notes", sources["slm"], sources["llm"], longest=1.0, prompt=prompt, most_tokens=3)


def pool_of(kind: str) -> Pool:
    """Thirty clips of three notes, each at ten pitches."""
    make = AudioExample if kind == "classification" else SpeechExample
    return Pool([make(f"{note}{i}", tone(hertz * (1 + i / 100), 0.2), note)
                 for i in range(10) for note, hertz in NOTES.items()])  # fmt: skip


def config_of(sources: dict[str, str], secure: bool, rounds: int = 1):
    roles = {role: {"source": source, "dtype": "float32", "adapter": {"targets": ["q_proj", "v_proj"]}}
             for role, source in sources.items()}  # fmt: skip
    if "ast" in sources["slm"]:
        roles = {role: {**section, "adapter": {}} for role, section in roles.items()}
    return load_config(
        {
            "name": "notes",
            "task": {
                "name": "notes", "clients": 3, "partition": {"kind": "iid"}, "private_size": 4, "public_size": 4,
                "unlabelled_size": 2, "test_size": 6,
            },
            **roles,
            "client": {"learning_rate": 1e-2, "batch_size": 4},
            "server": {"learning_rate": 1e-2, "batch_size": 4},
            "federation": {"rounds": rounds, "secure_aggregation": {"enabled": secure}},
        }
    )  # fmt: skip


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "secure"])
@pytest.mark.parametrize("kind", KINDS)
def test_run_equals_the_one_in_this_process_bit_for_bit(models, tmp_path, monkeypatch, kind, secure):
    config, pool = config_of(models[kind], secure), pool_of(kind)
    small = Small(config, tmp_path / "disk", monkeypatch, lambda: modality_of(kind, models[kind]), pool)
    records = small.run(tmp_path / "network")
    run(config, tmp_path / "local", modality=modality_of(kind, models[kind]), pool=pool)
    here, there = (run_directory.load_round(tmp_path / place) for place in ("network", "local"))
    assert here is not None
    assert there is not None
    assert records[-1].participants == ("0", "1", "2")
    assert all(identical(here[1][role], there[1][role]) for role in ("slm", "llm"))
    assert records[-1].scores == there[0].scores
    if not secure:
        assert told(records[-1]) == told(there[0])
        scores = [update.score for update in small.answers("0") if isinstance(update, ClientUpdate)]
        assert [set(score.counts) for score in scores if score] == [
            set() if kind == "classification" else {"words", "wer", "cer"}
        ]


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(models, tmp_path, kind):
    pool = pool_of(kind)
    ends = []
    for name, steps in (("whole", (2,)), ("parts", (1, 2))):
        for rounds in steps:
            config = config_of(models[kind], False, rounds)
            run(config, tmp_path / name, modality=modality_of(kind, models[kind]), pool=pool, resume=rounds != steps[0])
        ends.append(run_directory.load_round(tmp_path / name))
    assert all(identical(ends[0][1][role], ends[1][1][role]) for role in ("slm", "llm"))
    assert told(ends[0][0]) == told(ends[1][0])
