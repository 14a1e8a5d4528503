import json
import sys
import tempfile
from types import SimpleNamespace

import pytest

from fedcollm.cli import app as cli
from fedcollm.config import RunConfig
from fedcollm.errors import UserError
from fedcollm.federation.cohort import sample
from fedcollm.runs import profile as measuring
from fedcollm.runs.profile import (
    Passes,
    Plan,
    chosen_batches,
    measure,
    part_seconds,
    work,
)
from fedcollm.runs.runner import rounds


def changed(config: RunConfig, **sections) -> RunConfig:
    values = config.model_dump()
    for section, change in sections.items():
        values[section] |= change
    return RunConfig.model_validate(values)


@pytest.fixture
def by_hand(monkeypatch):
    """Every part takes a millisecond a padded token: predictions without a clock."""
    monkeypatch.setattr(measuring, "_seconds_per_unit", lambda task, model, examples, batch_size, run: 1e-3)


ONCE = Passes(fit={"a": 1.0, "b": 3.0, "c": 10.0}, distillation=5.0, scoring={"slm": 0.5, "llm": 2.0})


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        # a and b once: 4; one epoch of D_a: 5; both roles, and two clients' SLMs: 2.5 + 2 x 0.5
        (Plan([["a", "b"]], 1, 1, [1], [1]), (4.0, 5.0, 3.5)),
        # three rounds: 2 x (4 + 13 + 11); 3 x 3 x 5; scored after 2 and 3, where 3 alone scores its clients
        (Plan([["a", "b"], ["b", "c"], ["a", "c"]], 2, 3, [2, 3], [3]), (56.0, 45.0, 6.0)),
        # no client takes part
        (Plan([[], []], 1, 1, [1, 2], [1, 2]), (0.0, 10.0, 5.0)),
    ],
    ids=["one round", "three rounds", "no clients"],
)
def test_seconds_of_all_rounds_by_part(plan, expected):
    assert tuple(part_seconds(ONCE, plan).values()) == expected


def test_clients_that_are_not_covered_have_no_seconds():
    plan = Plan([["a"]], 1, 1, [1], [])
    assert part_seconds(Passes(None, 5.0, {"slm": 0.5}), plan) == {"distillation": 5.0, "evaluation": 0.5}


def test_batches_are_spread_from_the_smallest_to_the_largest():
    # eight batches of two, of which the middles of four quarters are the 2nd, 4th, 6th and 8th
    sizes = list(range(16))
    assert chosen_batches(sizes, sizes, 2, 4) == [[2, 3], [6, 7], [10, 11], [14, 15]]
    assert chosen_batches([4, 9], [4, 9], 16, 6) == [[4, 9]]


def test_work_counts_padding():
    sizes = [7, 1, 3, 2, 5]
    # in order of size: (1, 2), (3, 5), (7)
    assert work(None, sizes, 2, shuffled=False) == 2 * 2 + 2 * 5 + 7
    # five examples are one window, sorted before it is cut: the same batches
    assert work(None, sizes, 2, shuffled=True) == 21
    assert work(None, [], 2, shuffled=False) == 0
    assert work(SimpleNamespace(reads_packed=lambda columns: columns <= 7), sizes, 2, shuffled=True) == 18
    assert work(SimpleNamespace(reads_packed=lambda columns: columns < 7), sizes, 2, shuffled=True) == 21


def test_every_part_is_measured_and_nothing_is_left(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    measured = measure(tiny_config)
    assert measured.round_seconds.keys() == {"clients", "distillation", "evaluation"}
    assert all(seconds > 0 for seconds in measured.round_seconds.values())
    expected = measured.start_seconds + 2 * sum(measured.round_seconds.values())
    assert measured.run_seconds == pytest.approx(expected)
    assert measured.peak_memory_bytes > 10_000_000
    assert measured.notes == ()
    assert list(tmp_path.iterdir()) == []


LABELS = {"server": {"pseudo_labels": {"columns": 64}}, "task": {"unlabelled_size": 8}}


@pytest.mark.parametrize("values", [{}, LABELS], ids=["plain", "with pseudo-labels"])
def test_bytes_are_those_that_the_run_records(tiny_config, tmp_path, by_hand, values):
    config = changed(tiny_config, **values)
    measured = measure(config)
    records = list(rounds(config, tmp_path / "run"))
    assert [(r.bytes_up, r.bytes_down) for r in records[1:]] == [(measured.bytes_up, measured.bytes_down)] * 2
    assert measured.run_bytes == sum((r.bytes_up + r.bytes_down) * len(r.participants) for r in records)


def test_the_whole_run_from_the_data(tiny_config, by_hand):
    # every row is 7 tokens, such as "the a red dog is a" and an answer: 40 rows a client, 96 public, 48 for scoring
    assert measure(tiny_config).round_seconds == {
        "clients": pytest.approx(0.56),  # 2 x 40 x 7 ms
        "distillation": pytest.approx(0.672),  # 96 x 7 ms
        "evaluation": pytest.approx(1.344),  # two roles and two clients: 4 x 48 x 7 ms
    }


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"federation": {"rounds": 5}}, (1, 1, 1)),
        ({"client": {"epochs": 3}}, (3, 1, 1)),
        ({"server": {"epochs": 2}}, (1, 2, 1)),
        ({"federation": {"fraction": 0.5}}, (0.5, 1, 0.75)),  # one client of two: three scorings of four
        ({"evaluation": {"every": 2}}, (1, 1, 0.5)),  # the second round of two
        ({"evaluation": {"clients": "last"}}, (1, 1, 0.75)),  # four scorings in one round, two in the other
        ({"evaluation": {"clients": "never"}}, (1, 1, 0.5)),
        ({"federation": {"participants": []}}, (0, 1, 0.5)),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_parts_grow_with_what_the_run_is_asked_for(tiny_config, by_hand, change, parts):
    plain, other = measure(tiny_config).round_seconds, measure(changed(tiny_config, **change)).round_seconds
    assert [other[part] / plain[part] for part in plain] == pytest.approx(parts)


def test_without_distillation_there_is_one_role(tiny_config, by_hand):
    measured = measure(changed(tiny_config, server={"epochs": 0}))
    assert measured.round_seconds["distillation"] == 0
    assert measured.round_seconds["evaluation"] == pytest.approx(1.008)  # one role and two clients: 3 x 48 x 7 ms


def test_unequal_clients_count_in_the_rounds_that_draw_them(tiny_config, by_hand):
    config = changed(
        tiny_config,
        task={"partition": {"kind": "quantity"}},
        federation={"fraction": 0.5, "rounds": 3},
        evaluation={"clients": "last"},
    )
    federation = measuring.build_federation(config, config.task.path.parent / "none")
    counts = {client: len(part) for client, part in federation.split.private.items()}
    assert len(set(counts.values())) == 2
    drawn = [client for index in (1, 2, 3) for client in sample(list(counts), 0.5, 0, index)]
    expected = sum(counts[client] for client in drawn) * 7e-3 / 3
    assert measure(config).round_seconds["clients"] == pytest.approx(expected)


def test_secure_aggregation_is_said_not_to_be_covered(tiny_config, by_hand):
    config = changed(tiny_config, task={"clients": 3}, federation={"secure_aggregation": True})
    measured = measure(config)
    assert [note.split(":")[0] for note in measured.notes] == ["secure aggregation is not covered"]
    assert (measured.run_seconds, measured.bytes_up, measured.bytes_down, measured.run_bytes) == (None,) * 4
    assert measured.round_seconds["clients"] == pytest.approx(0.84)  # 3 x 40 x 7 ms


def test_private_training_is_said_not_to_be_covered(tiny_config, by_hand):
    privacy = {"level": "example", "clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-5, "sampling_rate": 0.1}
    measured = measure(changed(tiny_config, federation={"privacy": privacy, "aggregation": "uniform"}))
    assert "DP-SGD" in measured.notes[0]
    assert measured.run_seconds is None
    # clients send no scores under privacy: the two roles only
    assert measured.round_seconds == {"distillation": pytest.approx(0.672), "evaluation": pytest.approx(0.672)}


def test_a_model_that_is_not_there_is_the_users_error(tiny_config):
    with pytest.raises(UserError, match="no such directory: /no/such/model"):
        measure(changed(tiny_config, slm={"source": "/no/such/model"}))


@pytest.fixture
def check(monkeypatch, capsys, tmp_path):
    """`fedcollm check` on a configuration: standard output and standard error."""

    def call(config: RunConfig, *arguments: str) -> tuple[str, str]:
        file = tmp_path / "config.yaml"
        file.write_text(config.model_dump_json())  # JSON is YAML
        monkeypatch.setattr(sys, "argv", ["fedcollm", "check", str(file), *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        return tuple(capsys.readouterr())

    return call


def test_check_prints_what_was_measured(tiny_config, check):
    out, _ = check(tiny_config, "--measure")
    for text in ("time: clients", "time: distillation", "time: evaluation", "time: total", "peak memory"):
        assert text in out
    assert "nothing was trained" not in out


def test_check_says_in_the_table_what_is_not_covered(tiny_config, check):
    config = changed(tiny_config, task={"clients": 3}, federation={"secure_aggregation": True})
    out, _ = check(config, "--measure")
    assert "not covered / not covered" in out
    assert "secure aggregation is not covered" in out


def test_check_gives_the_measurement_as_json(tiny_config, check):
    out, err = check(tiny_config, "--measure", "--json")
    assert err == ""
    assert json.loads(out)["measured"]["run_seconds"] > 0
    assert "measured" not in json.loads(check(tiny_config, "--json")[0])


def test_pair_with_two_tokenizers_is_measured(pair_config):
    measured = measure(pair_config)
    assert measured.round_seconds.keys() == {"clients", "distillation", "evaluation"}
    assert measured.round_seconds["distillation"] > 0
    assert measured.notes == ()
