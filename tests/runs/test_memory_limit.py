"""What a memory limit changes, by hand: libraries take 450 MB, and an example 10 MB in this file."""

import os
from types import SimpleNamespace

import pytest

from fedcollm import memory
from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.data.pool import Split
from fedcollm.errors import UserError
from fedcollm.memory import parse_bytes
from fedcollm.modalities.text.examples import TextExample
from fedcollm.runs.estimate import check, fit_client
from fedcollm.runs.memory_limit import LIBRARY_BYTES, fit_memory

MB = 10**6
CONFIG = changed(RunConfig(), {"client.batch_size": 8, "server.batch_size": 4, "evaluation.batch_size": 6})


def needed(config: RunConfig) -> int:
    """Ten MB per example at once, a tenth of that with layers that are computed again."""
    ten = [1 if model.gradient_checkpointing else 10 for model in (config.slm, config.llm)]
    return MB * (ten[0] * config.client.at_once + ten[1] * config.server.at_once + config.evaluation.batch_size)


def test_the_first_way_that_fits_is_taken():
    # 80 + 40 + 6 as it is; 40 + 20 + 3 in halves; 10 + 10 + 1 in eighths, and 1 + 1 + 1 with layers computed again
    parts = {"client.micro_batch_size": 4, "server.micro_batch_size": 2, "evaluation.batch_size": 3}
    for limit, changes in ((576, {}), (575, parts), (513, parts)):
        assert fit_memory(CONFIG, needed, limit * MB) == changes
    twice = {"slm.gradient_checkpointing": True, "llm.gradient_checkpointing": True}
    assert fit_memory(CONFIG, needed, 469 * MB) == twice  # 8 + 4 + 6 = 18 with whole batches
    assert fit_memory(CONFIG, needed, 460 * MB) == twice | parts  # 4 + 2 + 3
    alone = fit_memory(changed(CONFIG, {"server.epochs": 0}), lambda c: needed(c) // 2, 500 * MB, ["slm"])
    assert alone == {"client.micro_batch_size": 4, "evaluation.batch_size": 3}
    trimmed = changed(CONFIG, {"client.loss_trim": 0.25})  # of whole batches: 80 + 20 + 3
    assert fit_memory(trimmed, needed, 555 * MB) == {"server.micro_batch_size": 2, "evaluation.batch_size": 3}


def test_too_little_memory_says_how_much_is_needed():
    with pytest.raises(UserError, match=r"--memory-limit 452MB: at least 453MB are needed.*smaller model"):
        fit_memory(CONFIG, needed, 452 * MB)


def test_layers_are_not_computed_again_where_every_example_has_a_gradient():
    privacy = {"level": "example", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5, "sampling_rate": 0.1}
    private = changed(CONFIG, {"federation.aggregation": "uniform", "federation.privacy": privacy})
    with pytest.raises(UserError, match="at least 471MB"):
        fit_memory(private, needed, 470 * MB)


@pytest.mark.parametrize(("text", "size"), [("700MB", 700 * MB), (" 1.5 gib", 1610612736), ("64k", 64000), ("7", 7)])
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "0MB", "-1GB", "700 mega", "1e3", "nan", "9" * 30, "١MB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match=r"--memory-limit .*700MB"):
        parse_bytes(text)


def test_memory_is_saved_by_small_caches_and_one_arena(monkeypatch):
    calls = []
    library = SimpleNamespace(mallopt=lambda option, value: calls.append((option, value)))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    memory.save_memory()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"  # what the user chose stays
    assert calls == [(-3, 1048576), (-8, 1)]  # M_MMAP_THRESHOLD and M_ARENA_MAX
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace())  # a C library without mallopt
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    memory.save_memory()
    assert os.environ.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY") == "32"
    assert os.environ.pop("LRU_CACHE_CAPACITY") == "1"


def test_a_run_and_a_client_are_estimated_with_the_changes(tiny_config):
    config = changed(tiny_config, {"client.batch_size": 8})
    whole = check(config)
    limit = LIBRARY_BYTES + whole.memory_bytes - 1
    cost = check(config, limit_bytes=limit)
    assert whole.limited == {}
    assert cost.fitted["client.micro_batch_size"] == 4
    assert cost.memory_bytes < whole.memory_bytes
    assert cost.limited == {"limit_bytes": limit, "estimated_bytes": LIBRARY_BYTES + cost.memory_bytes, **cost.fitted}
    parts = Split([], {"": [TextExample("a", "red " * 9, ("a",), 0, ("A",))] * 9}, [])
    own = fit_client(config, parts, limit)
    assert own["estimated_bytes"] < cost.limited["estimated_bytes"]
