import dataclasses
import math

import pytest

from fedcollm.errors import UserError
from fedcollm.messages import RoundRecord
from fedcollm.report import find_runs, summary
from fedcollm.report.labels import confusion_labels, confusion_table, data_table, parts
from fedcollm.report.runs import Method, group, main_first, read_run, with_true_roles
from fedcollm.report.scores import Point, RoleScores, curve, finals, interval, sampling_half_width
from fedcollm.report.tables import byte_table, comparison, loss_table, score_table, time_table


def test_summary_of_a_whole_run(make_run, make_record):
    records = [make_record(0, 0.1, 0.3), make_record(1, 0.6, 0.7), make_record(2, 0.5, 0.8)]
    result = summary(make_run("run", records, name="tiny", seed=3, federation={"rounds": 2}))
    assert (result.name, result.seed, result.rounds_done, result.rounds_planned) == ("tiny", 3, 2, 2)
    assert result.scores == {
        "slm": RoleScores(zero_shot=0.1, best=0.6, best_round=1, final=0.5, final_round=2),
        "llm": RoleScores(zero_shot=0.3, best=0.8, best_round=2, final=0.8, final_round=2),
        "clients": RoleScores(zero_shot=None, best=0.5, best_round=1, final=0.4, final_round=2),
    }
    assert (result.bytes_up, result.bytes_down) == (2000, 2000)
    assert result.full_model_bytes == 200_000  # 100,000 parameters in bfloat16
    assert result.adapter_share == 0.005  # 500 of 100,000 parameters, whatever their bytes
    assert result.seconds == {"clients": 4.0, "distillation": 6.0, "evaluation": 3.0}
    assert result.peak_memory_bytes == 2_000_000


def test_summary_without_llm_scores_or_environment(make_run, make_record):
    result = summary(make_run("run", [make_record(0, 0.1), make_record(1, 0.2)], bare=True))
    assert set(result.scores) == {"slm", "clients"}
    assert result.full_model_bytes is result.adapter_share is None


def test_summary_ignores_unscored_rounds(make_run, make_record):
    records = [make_record(0, 0.1, 0.3), make_record(1, None), make_record(2, 0.4, math.nan)]
    result = summary(make_run("run", records))
    assert result.scores["slm"] == RoleScores(0.1, 0.4, 2, 0.4, 2)
    assert result.scores["llm"] == RoleScores(0.3, 0.3, 0, 0.3, 0)


def test_summary_of_a_run_interrupted_after_round_0(make_run, make_record):
    result = summary(make_run("run", [make_record(0, 0.1, 0.3)]))
    assert (result.rounds_done, result.rounds_planned, result.bytes_up) == (0, 5, 0)
    assert result.scores["slm"] == RoleScores(0.1, 0.1, 0, 0.1, 0)


def test_summary_of_a_run_before_its_first_record(make_run):
    result = summary(make_run("run", [], bare=True))
    assert (result.rounds_done, result.scores) == (0, {})


def test_broken_files_are_the_users_to_mend(make_run, make_record):
    directory = make_run("run", [make_record(0, 0.1)])
    (directory / "rounds.jsonl").write_text('{"round": 0, "sco')
    with pytest.raises(UserError, match=r"rounds\.jsonl"):
        summary(directory)
    (directory / "config.yaml").write_text("rounds: many")
    with pytest.raises(UserError, match=r"config\.yaml"):
        summary(directory)


def test_find_runs_in_natural_order(make_run, tmp_path):
    places = ["fedcollm/seed-10", "fedcollm/seed-2", "standalone/seed-2/client-0", "standalone/seed-2/client-1"]
    for place in places:
        make_run(place, [], bare=True)
    order = ["fedcollm/seed-2", "fedcollm/seed-10", "standalone/seed-2/client-0", "standalone/seed-2/client-1"]
    assert find_runs(tmp_path) == [tmp_path / place for place in order]
    assert find_runs(tmp_path / places[0]) == [tmp_path / places[0]]


def test_find_runs_refuses_what_holds_none(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        find_runs(tmp_path)
    with pytest.raises(UserError, match="not a directory"):
        find_runs(tmp_path / "missing")


def test_interval_is_student_t():
    mean, half = interval([0.5, 0.6, 0.7])
    assert mean == pytest.approx(0.6)
    assert half == pytest.approx(4.302653 * 0.1 / math.sqrt(3))  # t(0.975; 2) s / √n
    assert interval([0.5]) == (0.5, None)
    assert interval([0.5, 0.75]) == (0.625, None)  # two seeds are too few for an interval


def test_sampling_half_width_is_wilsons():
    assert sampling_half_width(0.5, 100) == pytest.approx(0.0962, abs=1e-4)
    assert sampling_half_width(0.0, 100) == pytest.approx(0.0185, abs=1e-4)  # no examples right is no certainty


def test_methods_are_folders_of_seeds_and_clients(make_run, make_record):
    runs = [
        make_run("b/fedavg/seed-0", [make_record(0, 0.1), make_record(1, 0.3)], name="fedavg"),
        make_run("b/fedavg/seed-1", [make_record(0, 0.1), make_record(1, 0.5)], name="fedavg", seed=1),
        make_run("b/fedcollm/seed-0", [make_record(0, 0.2)], name="fedcollm"),
        make_run("b/standalone/seed-0/client-0", [make_record(0, 0.0), make_record(1, 0.2)]),
        make_run("b/standalone/seed-0/client-1", [make_record(0, 0.0), make_record(1, 0.4)]),
    ]
    methods = main_first(group(map(read_run, runs)))
    assert [method.name for method in methods] == ["fedcollm", "standalone", "fedavg"]
    assert [method.federated for method in methods] == [True, False, True]
    assert finals(methods[1], "slm") == {0: pytest.approx(0.3)}  # the mean over clients, not a seed each
    assert curve(methods[1], "slm") == [
        Point(0, 0.0, None, (0.0,)),
        Point(1, pytest.approx(0.3), None, (pytest.approx(0.3),)),
    ]
    first, second = curve(methods[2], "slm")
    assert first == Point(0, pytest.approx(0.1), None, (0.1, 0.1))
    assert second == Point(1, pytest.approx(0.4), None, (0.3, 0.5))


def test_one_name_with_two_configurations_is_two_methods(make_run, make_record):
    records = [make_record(0, 0.1)]
    runs = [
        make_run("a", records),
        make_run("b", records, server={"epochs": 0}),
        make_run("c", records, seed=1),
    ]
    methods = group(map(read_run, runs))
    assert [method.name for method in methods] == ["icd10 (a)", "icd10 (b)"]
    assert list(methods[0].by_seed) == [0, 1]
    twice = [make_run(f"{place}/fedavg/seed-0", records, name="fedavg") for place in ("old", "new")]
    assert [method.name for method in group(map(read_run, twice))] == ["fedavg (old)", "fedavg (new)"]


def test_llm_in_the_slms_place_is_shown_as_the_llm(make_run, make_record):
    runs = [make_run("m", [make_record(0, 0.1, 0.3)], name="m"), make_run("c", [make_record(0, 0.3)], slm={}, name="c")]
    methods = with_true_roles(group(map(read_run, runs)))
    assert finals(methods[1], "slm") == {}
    assert finals(methods[1], "llm") == {0: 0.3}


def test_comparison_pairs_differences_by_seed(make_run, make_record):
    runs = [
        make_run(f"{name}/seed-{seed}", [make_record(0, 0.1), make_record(1, score)], name=name, seed=seed)
        for name, scores in (("fedcollm", (0.5, 0.7, 0.6)), ("fedavg", (0.4, 0.6, 0.5)), ("mine", (0.5, 0.7)))
        for seed, score in enumerate(scores)
    ]
    table = comparison(group(map(read_run, runs)))
    assert table.header[:5] == ("Method", "Small model", "Large model", "Mean of clients", "Small model − FedCoLLM’s")
    # t(0.975; 2) = 4.3027, s = 0.1: 4.3027 · 0.1 / √3 = 0.2484
    assert table.rows == [
        ("FedCoLLM", "60.0 ± 24.8%", "–", "50.0 ± 24.8%", "–", "3", "1", "2 kB", "7.0 s"),
        ("FedAvg", "50.0 ± 24.8%", "–", "40.0 ± 24.8%", "−10.0 ± 0.0", "3", "1", "2 kB", "7.0 s"),
        ("mine", "60.0%", "–", "50.0%", "+0.0", "2", "1", "2 kB", "7.0 s"),
    ]


def test_tables_by_round(make_run, make_record):
    run = read_run(make_run("run", [make_record(0, 0.1, 0.3), make_record(1, 0.5, 0.75)]))
    assert score_table(group([run])).header == ("Round", "Small model", "Large model", "Mean of clients")
    assert score_table(group([run])).rows == [("0", "10.0%", "30.0%", "–"), ("1", "50.0%", "75.0%", "40.0%")]
    assert loss_table(run.records).rows == [("1", "2.000", "1.000", "0.500", "0.250")]
    assert time_table(run.records).rows == [("0", "0.0", "0.0", "1.0", "1.0"), ("1", "2.0", "3.0", "1.0", "6.0")]
    assert byte_table(run.records, 200_000).rows == [("1", "2 kB", "2 kB", "4 kB", "400 kB")]
    assert byte_table([RoundRecord(0)], None).rows == []


def test_accuracy_stands_beside_what_was_spent_of_privacy(make_run, make_record):
    records = [dataclasses.replace(make_record(i, 0.5), epsilon=value) for i, value in enumerate((0.0, 1.2345))]
    table = score_table(group([read_run(make_run("run", records))]))
    assert table.header == ("Round", "Small model", "Mean of clients", "ε spent")
    assert table.rows == [("0", "50.0%", "–", "0"), ("1", "50.0%", "40.0%", "1.23")]


def test_tables_of_labels(make_run, make_record):
    run = read_run(make_run("run", [make_record(0, 0.1), make_record(1, 0.5)]))
    table = data_table(parts(run.data))
    assert table.header == ("Label", "Client 0", "Client 1", "public part", "Total")
    assert table.rows == [
        ("bird", "0", "4", "1", "5"),
        ("cat", "3", "0", "1", "4"),
        ("dog", "1", "0", "1", "2"),
        ("All labels", "4", "4", "3", "11"),
    ]
    rows = run.confusion["slm"]
    assert confusion_labels(rows) == ["bird", "cat", "dog"]
    assert confusion_table(rows, ["bird", "cat", "dog"], "small model").rows == [
        ("bird", "4", "50.0%", "cat (2)"),
        ("cat", "4", "75.0%", "dog (1)"),
        ("dog", "2", "100.0%", "–"),
    ]


def test_what_clients_keep_has_a_column_only_where_there_is_some(make_run, make_record):
    plain = [make_record(0, 0.1), make_record(1, 0.5)]
    kept = [plain[0], dataclasses.replace(plain[1], scores={**plain[1].scores, "personal": 0.75})]
    runs = [Method(name, (read_run(make_run(name, records)),)) for name, records in (("a", plain), ("b", kept))]
    assert "Clients’ own" not in comparison(runs[:1]).header
    table = comparison(runs)
    column = table.header.index("Clients’ own")
    assert [row[column] for row in table.rows] == ["–", "75.0%"]
