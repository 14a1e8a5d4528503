"""The benchmark of images, boxes and audio in its tiny form: both sides compute the same losses in the same order."""

import importlib

import pytest
import torch
from benchmarks.speed import modalities, pairs, results
from benchmarks.speed.modality_work import made

_LAYER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_STACKS = ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads")

#: Kind of work to the configuration of a network of one layer.
TINY = {
    "images": {"image_size": 32, "patch_size": 8, **_LAYER},
    "detection": {
        "image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 5, "use_mid_position_embeddings": False,
        **_LAYER,
    },
    "audio": {"num_mel_bins": 16, "max_length": 32, **_LAYER},
    "ctc": {
        "conv_dim": [8, 8], "conv_kernel": [16, 40], "conv_stride": [8, 40], "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer", **_LAYER,
    },
    "whisper": {
        "vocab_size": 64, "d_model": 16, **dict(zip(_STACKS, (1, 1, 2, 2), strict=True)), "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16, "num_mel_bins": 8,
    },
}  # fmt: skip


def tiny(kind: str, **others) -> dict:
    return {"kind": kind, "shape": TINY[kind], "examples": 8, "batch_size": 4, "seconds": 2, **others}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Trainer's output directory


def test_cases_name_functions_and_have_whole_batches():
    titles = [case["title"] for case in modalities.CASES]
    assert len(set(titles)) == len(titles) == 7
    assert {case["kind"] for case in modalities.CASES} == TINY.keys()
    for case in modalities.CASES:
        assert all(callable(pairs.resolve(case[key])) for key in ("ours", "peer", "same"))
        assert case["examples"] % case["batch_size"] == 0  # Trainer's batches are cut from one list, as ours are


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "features"), [(kind, "collator") for kind in TINY] + [("audio", "before"), ("whisper", "before")]
)
@pytest.mark.filterwarnings("ignore")  # the peer's own
def test_both_sides_have_the_same_losses(kind, features):
    pytest.importorskip("accelerate", reason="Trainer needs accelerate")
    case = tiny(kind, features=features)
    ours, peer = modalities.ours(case)(), modalities.trainer(case)()
    assert len(ours["losses"]) == len(peer["losses"]) == 2
    assert modalities.same(ours, peer).startswith("losses of 2 steps within")
    assert all(figures["processor_seconds"] > 0 for figures in (ours, peer))


def test_batches_are_those_of_fit():
    with made(tiny("audio")) as work:
        batches = modalities.batches(work, 4)
        again = modalities.batches(work, 4)
    ids = [[example.id for example in batch] for batch in batches]
    assert sorted(id for batch in ids for id in batch) == list("01234567")
    # clips of 1, 1.25, 1.5, 1.75 and 2 s in turn: each batch has examples of similar size
    sizes = [[work.task.size(example) for example in batch] for batch in batches]
    shorter, longer = sorted(sizes, key=max)
    assert max(shorter) <= min(longer)
    assert ids == [[example.id for example in batch] for batch in again]


def test_labels_of_the_decoder_leave_out_the_prompt():
    with made(tiny("whisper")) as work:
        (row,) = work.rows(work.examples[:1])
    prompt = len(work.task.prompt)
    assert row["read"][:prompt].tolist() == work.task.prompt
    assert row["target"][: prompt - 1].tolist() == [-100] * (prompt - 1)
    assert torch.equal(row["target"][prompt - 1 : -1], row["read"][prompt:])  # each token is read after it is predicted
    assert row["target"][-1] == work.task.end


@pytest.mark.parametrize(
    ("ours", "peer", "word"),
    [([1.0, 0.9], [1.0, 0.901], "differ"), ([1.0, 1.0], [1.0, 1.0], "all losses"), ([1.0], [1.0, 0.9], "longer")],
)
def test_sides_that_differ_are_no_comparison(ours, peer, word):
    with pytest.raises(ValueError, match=word):
        modalities.same({"losses": ours}, {"losses": peer})


def test_medians_and_threads_of_a_pair():
    figures = [{"seconds": s, "processor_seconds": s / 2, "peak_bytes": 10 * s, "dtype": "x"} for s in (3.0, 1.0, 2.0)]
    summary = importlib.import_module("benchmarks.speed.pairs")._summary(figures)
    assert (summary["seconds"], summary["processor_seconds"], summary["peak_bytes"]) == (2.0, 1.0, 30.0)
    assert summary["each_seconds"] == [3.0, 1.0, 2.0]
    sides = [{"seconds": 2.0, "processor_seconds": 1.0}, {"seconds": 3.0, "processor_seconds": 1.5}]
    assert results._seconds(sides) == "2 / 3 (1 / 1.5)"
    assert results._seconds([{"seconds": 2.0}, sides[1]]) == "2 / 3"
