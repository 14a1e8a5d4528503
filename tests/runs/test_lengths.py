"""What `check` says of a user's own data, and what it refuses before anything is loaded."""

import json
from types import SimpleNamespace

import pytest

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.data.pool import Split
from fedcollm.errors import UserError
from fedcollm.runs import build, estimate
from fedcollm.runs.lengths import lengths
from fedcollm.runs.resolve import resolved
from fedcollm.runs.runner import rounds


def test_percentiles_by_hand():
    modality = SimpleNamespace(lengths=lambda example: {"words": example, "same": 3})
    split = Split(public=list(range(1, 11)), private={"0": list(range(11, 20))}, test=[20])
    assert lengths(modality, split) == {"words": {"median": 10, "95 %": 19, "longest": 20}}  # pyright: ignore
    one = Split([4], {}, [5])
    assert lengths(modality, one) == {"words": {"median": 4, "95 %": 5, "longest": 5}}  # pyright: ignore


def test_check_tells_lengths_and_prompts_that_are_cut(tiny_config: RunConfig, tmp_path):
    rows = [{"text": "red " * n, "kind": ("colour", "animal")[n % 2], "site": "a"} for n in range(1, 41)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"private_size": 8, "public_size": 8, "test_size": 16}
    own = {f"task.{key}": value for key, value in sizes.items()} | {"task.path": str(tmp_path / "mine.jsonl")}
    cost = estimate.check(changed(tiny_config, own))
    assert cost.data is not None
    assert list(cost.lengths) == ["tokens of a prompt"]  # an answer is always one token
    (values,) = cost.lengths.values()
    assert values["median"] == 22  # "red" n times, and "is a"
    assert values["longest"] == 32  # the models' context
    assert any("prompts were longer" in note for note in cost.data["notes"])


def test_the_number_of_groups_stands_in_the_configuration_of_the_run(tiny_config: RunConfig, tmp_path):
    natural = {"task.partition.kind": "natural", "task.clients": None, "task.private_size": 20, "federation.rounds": 1}
    config = changed(tiny_config, natural)
    cost = estimate.check(config)
    assert cost.data is not None
    assert list(cost.data["clients"]) == ["0", "1", "2"]  # the groups of the data
    assert [record.round for record in rounds(config, tmp_path / "run")] == [0, 1]
    assert "clients: 3" in (tmp_path / "run" / "config.yaml").read_text()
    assert [record.round for record in rounds(config, tmp_path / "run", resume=True)] == [0, 1]
    two = changed(config, {"federation.secure_aggregation.enabled": True, "task.format.group": "kind"})
    with pytest.raises(UserError, match="secure_aggregation needs at least 3 clients"):
        resolved(two)


@pytest.mark.parametrize("device", ["cuda:99", "mps", "meta"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(
    device: str, tiny_config: RunConfig, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(build, "load_pool", fail)
    monkeypatch.setattr(estimate, "load_pool", fail)
    config = changed(tiny_config, {"device": device})
    with pytest.raises(UserError, match=f"device: '{device}' can't be used"):
        list(rounds(config, tmp_path / "run"))
    with pytest.raises(UserError, match="device"):
        estimate.check(config)
