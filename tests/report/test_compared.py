"""A comparison read off run directories, and its tables; numbers by hand."""

import re
from pathlib import Path

import pytest

from fedcollm.config import RunConfig
from fedcollm.config.methods import METHODS
from fedcollm.messages import RoundRecord
from fedcollm.report import compared_plots, write_report
from fedcollm.report.budgets import Sizes, Steps, sizes, steps
from fedcollm.report.compared import Compared, Row, found_in, mean_by_key, tabulate
from fedcollm.report.compared_tables import all_tables, difference_table, score_table, summary_table
from fedcollm.report.html import read_methods
from fedcollm.report.markup import to_latex, to_markdown
from fedcollm.report.runs import described
from fedcollm.report.scores import Difference, finals, interval, outcome_half_width, paired_bootstrap
from fedcollm.report.tables import Table
from fedcollm.runs import directory as run_directory

DATA = {"clients": {"0": {"a": 20, "b": 13}, "1": {"a": 16}}, "public": {"a": 30, "b": 3}, "unlabelled": 7, "test": 4}


def changed(**sections) -> RunConfig:
    return RunConfig.model_validate(sections)


def test_identical_outcomes_differ_by_nothing():
    outcomes = [{"x": 1.0, "y": 0.0, "z": 1.0}]
    assert paired_bootstrap(outcomes, outcomes) == Difference(0.0, 0.0, 0.0, 1.0, 3, 1)


def test_all_better_is_no_accident():
    ours, theirs = [{str(i): 1.0 for i in range(20)}], [{str(i): 0.0 for i in range(20)}]
    assert paired_bootstrap(ours, theirs) == Difference(1.0, 1.0, 1.0, pytest.approx(2 / 10_001), 20, 1)
    assert paired_bootstrap(theirs, ours) == Difference(-1.0, -1.0, -1.0, pytest.approx(2 / 10_001), 20, 1)


def test_p_is_twice_the_share_of_resamples_on_the_other_side():
    # Differences 1, 1, 1, 0: no difference needs the last one four times, (1/4)^4 = 1/256 of all resamples.
    difference = paired_bootstrap([{"a": 1, "b": 1, "c": 1, "d": 1}], [{"a": 0, "b": 0, "c": 0, "d": 1}], 200_000)
    assert difference
    assert difference.mean == 0.75
    assert difference.p == pytest.approx(2 / 256, rel=0.15)
    assert (difference.low, difference.high) == (0.25, 1.0)  # P(mean ≤ 0.25) = 13/256 > 2.5 %, P(mean ≤ 0) < 2.5 %


def test_seeds_are_pooled_and_only_common_examples_count():
    ours, theirs = [{"a": 1.0, "b": 1.0}, {"c": 1.0, "e": 1.0}], [{"a": 0.0, "b": 1.0}, {"c": 0.0, "d": 1.0}]
    difference = paired_bootstrap(ours, theirs)
    assert difference
    assert (difference.mean, difference.examples, difference.seeds) == (pytest.approx(2 / 3), 3, 2)
    assert difference.seeds_half_width == interval([0.5, 1.0])[1]
    assert paired_bootstrap([{"a": 1.0}], [{"b": 1.0}]) is None
    assert paired_bootstrap([], []) is None


def test_half_width_over_test_examples():
    assert outcome_half_width([1.0, 0.0] * 50) == pytest.approx(0.0962, abs=1e-4)  # Wilson's
    assert outcome_half_width([0.5, 1.0, 0.0]) == pytest.approx(1.959964 * 0.5 / 3**0.5)  # s = 0.5
    assert outcome_half_width([1.0]) is None


def test_steps_by_hand():
    config = changed(federation={"rounds": 3}, client={"epochs": 2}, server={"epochs": 1})
    # Clients: ceil(33 / 16) + ceil(16 / 16) = 4 batches, twice a round; server: ceil((33 + 7) / 16) = 3.
    assert steps(config, DATA) == Steps(3 * 2 * 4, 3 * 3)
    # two batches per step: ceil(3 / 2) + ceil(1 / 2) = 3 steps of the clients, ceil(3 / 2) = 2 of the server
    halved = {"gradient_accumulation": 2}
    config = changed(federation={"rounds": 3}, client={"epochs": 2} | halved, server={"epochs": 1} | halved)
    assert steps(config, DATA) == Steps(3 * 2 * 3, 3 * 2)
    alone = changed(federation={"rounds": 3, "participants": ["1"]}, server={"epochs": 0})
    assert steps(alone, DATA) == Steps(3, 0)
    assert steps(changed(federation={"rounds": 3, "participants": []}), DATA) == Steps(0, 9)
    assert steps(changed(control={"features": "slm"}, federation={"rounds": 1}, server={"epochs": 0}), DATA) == Steps(
        0, 0
    )
    half = changed(federation={"rounds": 4, "fraction": 0.5, "participants": ["0"]})
    assert steps(half, DATA).client == 4 * 3  # one of one
    assert sizes(DATA) == Sizes(2, 49, 33, 7, 4)


def test_steps_under_privacy_of_examples():
    privacy = {"level": "example", "clip": 1, "noise_multiplier": 1, "delta": 1e-5, "sampling_rate": 0.1}
    config = changed(federation={"rounds": 2, "aggregation": "uniform", "privacy": privacy})
    assert steps(config, DATA).client == 2 * 2 * 10


def test_means_over_clients_of_what_all_of_them_have():
    assert mean_by_key([{"x": 1.0, "y": 0.0}, {"x": 0.0, "z": 1.0}]) == {"x": 0.5}


@pytest.fixture
def compared(make_run, make_record, tmp_path):
    """Three methods with two rounds, one seed, and four test examples."""

    def make(method: str, place: str, slm: list[int], llm: list[int] | None, **config) -> None:
        last = make_record(2, sum(slm) / 4, sum(llm) / 4 if llm else None)
        records = [make_record(0, 0.25, 0.5), make_record(1, 0.1), last]
        path = make_run(f"all/{place}", records, name=method, **{"federation": {"rounds": 2}, **config})
        outcomes = {role: dict(zip("abcd", map(float, ones), strict=True)) for role, ones in (("slm", slm),)}
        outcomes |= {"llm": dict(zip("abcd", map(float, llm), strict=True))} if llm else {}
        run_directory.write_json(path, run_directory.OUTCOMES, outcomes)
        run_directory.write_json(path, run_directory.DATA, DATA | {"duplicates_removed": 0, "notes": []})

    make("fedcollm", "fedcollm/seed-0", [1, 1, 1, 0], [1, 1, 1, 1])
    make("fedavg_ce", "fedavg_ce/seed-0", [1, 0, 1, 0], [1, 1, 1, 1])
    make("centralized_llm", "centralized_llm/seed-0", [1, 1, 0, 0], None)
    for k, slm in (("0", [1, 0, 0, 0]), ("1", [1, 1, 0, 0])):
        make("standalone", f"standalone/seed-0/client-{k}", slm, None, task={"clients": 2})
    return tmp_path / "all"


@pytest.fixture
def with_controls(compared, make_run) -> Path:
    """The same, with a control that is right on the last three of the four test examples."""
    config = {"control": {"features": "ngrams"}, "server": {"epochs": 0}, "federation": {"rounds": 1}}
    records = [RoundRecord(0), RoundRecord(1, {"control": 0.75}, bytes_up=8, bytes_down=8)]
    path = make_run("all/closed_form/seed-0", records, name="closed_form", **config)
    run_directory.write_json(path, run_directory.OUTCOMES, {"control": {"a": 0.0, "b": 1.0, "c": 1.0, "d": 1.0}})
    return compared


def test_control_stands_in_the_columns_of_both_models_and_is_paired_with_both(with_controls):
    rows = {row.method: row for row in tabulate(with_controls, "toy", list(METHODS), [0]).rows}
    assert list(rows) == ["", "closed_form", "standalone", "fedavg_ce", "fedcollm", "centralized_llm"]
    row = rows["closed_form"]
    assert row.name == "closed form: n-grams"
    assert row.values == {"slm": [0.75], "clients": [], "llm": [0.75]}
    assert row.steps == Steps(0, 0)
    assert row.differences["slm"]["fedcollm"].mean == 0.0  # [0, 1, 1, 1] - [1, 1, 1, 0]
    assert row.differences["slm"]["fedavg_ce"].mean == 0.25  # - [1, 0, 1, 0]
    assert row.differences["llm"]["fedcollm"].mean == row.differences["llm"]["fedavg_ce"].mean == -0.25
    assert row.sampling["slm"] == row.sampling["llm"] == pytest.approx(outcome_half_width([0, 1, 1, 1]))
    assert (rows[""].values["slm"], rows[""].values["llm"]) == ([0.25], [0.5])  # zero-shot, of the others


def test_scores_of_adapters_trained_before_are_not_called_zero_shot(compared):
    tables = [tabulate(compared, "toy", list(METHODS), [0])]
    for file in compared.rglob("config.yaml"):
        file.write_text(file.read_text().replace("start: null", "start: /theirs", 1))
    tables.append(tabulate(compared, "toy", list(METHODS), [0]))
    assert [table.rows[0].name for table in tables] == ["zero-shot", "before training"]


def test_controls_alone_have_no_row_before_training(with_controls):
    assert [row.method for row in tabulate(with_controls, "toy", ["closed_form"], [0]).rows] == ["closed_form"]


def test_report_of_a_comparison_shows_a_control_as_both_models(with_controls, tmp_path):
    (control,) = (method for method in read_methods([with_controls])[0] if method.name == "closed_form")
    assert finals(control, "slm") == finals(control, "llm") == {0: 0.75}
    page = write_report([with_controls], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "closed form: n-grams" in page


def test_comparison_from_disk(compared):
    table = tabulate(compared, "toy", list(METHODS), [0])
    rows = {row.method: row for row in table.rows}
    assert list(rows) == ["", "standalone", "fedavg_ce", "fedcollm", "centralized_llm"]
    assert (rows[""].values["slm"], rows[""].values["llm"]) == ([0.25], [0.5])
    assert rows["centralized_llm"].values == {"slm": [], "clients": [], "llm": [0.5]}
    assert rows["centralized_llm"].differences["llm"]["fedcollm"].mean == -0.5
    assert rows["standalone"].values["slm"] == [0.375]
    assert rows["standalone"].differences["slm"]["fedavg_ce"].mean == pytest.approx((0 + 0.5 - 1 + 0) / 4)
    assert rows["fedcollm"].differences["slm"]["fedavg_ce"].mean == 0.25
    assert rows["fedcollm"].differences["llm"]["fedavg_ce"].p == 1.0
    assert set(rows["fedcollm"].differences["slm"]) == {"fedavg_ce"}  # not with itself
    assert rows["fedcollm"].steps == Steps(2 * 4, 2 * 3)
    assert rows["standalone"].steps == Steps(2 * 2 * 4, 2 * 2 * 3)  # every key of its runs counts, as given here
    assert rows["fedcollm"].sampling["slm"] == pytest.approx(outcome_half_width([1, 1, 1, 0]))
    assert found_in(compared) == Compared("all", table.rows, [0], table.sizes)
    assert found_in(compared / "fedcollm") is None


def test_run_that_is_not_finished_is_left_out(compared):
    records = compared / "fedavg_ce/seed-0" / run_directory.ROUNDS
    records.write_text("\n".join(records.read_text().splitlines()[:2]) + "\n")
    (compared / "standalone/seed-0/client-1/config.yaml").unlink()
    assert [row.method for row in tabulate(compared, "toy", list(METHODS), [0, 1]).rows] == [
        "",
        "fedcollm",
        "centralized_llm",
    ]


def test_tables_of_a_comparison(compared):
    table = tabulate(compared, "toy", list(METHODS), [0])
    scores, differences = score_table(table), difference_table(table)
    assert differences
    assert scores.header == ("method", "SLM", "clients' SLMs", "LLM", "client steps", "server steps")
    assert score_table(table, page=True).header[:3] == ("Method", "Small model", "Mean of clients")
    assert score_table(table, page=True).rows[3][1:4] == ("75.0 ± 32.7%", "65.0%", "100.0 ± 24.5%")
    assert scores.rows[3][1:] == ("0.750 ± 0.327", "0.650", "1.000 ± 0.245", "8", "6")
    assert (
        "4 test examples; 2 clients with 49 private examples in total; public: 33 labelled, 7 unlabelled"
        in scores.caption
    )
    assert differences.header[1:3] == ("SLM above FedAvg + CE", "SLM above FedCoLLM")
    compared_methods = {row.method for row in table.rows}
    assert [row[0] for row in differences.rows] == [
        method.label for name, method in METHODS.items() if name in compared_methods
    ]
    assert len(all_tables([table])) == 2
    assert difference_table(Compared("toy", [Row("x", {"slm": [0.5]})], [0])) is None


def test_forest_plot_has_a_row_per_method_and_a_line_at_nothing(compared):
    table = found_in(compared)
    assert table
    figure = compared_plots.forest_plot(table, "fedavg_ce")
    slm, llm = figure.data
    assert slm.y == ("standalone (mean of clients)", "FedCoLLM")
    assert slm.x == (-12.5, 25.0)  # [1, .5, 0, 0] - [1, 0, 1, 0] over 4, in points
    assert (slm.error_x.arrayminus[1], slm.error_x.array[1]) == (25.0, 50.0)  # [+0.0, +75.0]
    assert llm.x == (0.0, -50.0)
    assert [(line.x0, line.x1) for line in figure.layout.shapes] == [(0, 0)]
    rows = compared_plots.forest_table(table, "fedavg_ce").rows
    assert [row[0] for row in rows] == ["standalone (mean of clients)", "FedCoLLM", "centralized LLM (private + D_a)"]
    assert compared_plots.forest_rows(table, "closed_form") == []


def test_clients_alone_stand_beside_what_all_share(compared):
    methods, _ = read_methods([compared])
    own, shared = compared_plots.alone(methods), compared_plots.together(methods[0])
    assert own == {"0": 0.25, "1": 0.5}
    assert shared == 0.75
    assert compared_plots.alone(methods[:1]) == {}
    assert compared_plots.clients_table(own, shared, {"1": 0.875}).rows == [
        ("Client 0", "25.0%", "75.0%", "+50.0", "–"),
        ("Client 1", "50.0%", "75.0%", "+25.0", "87.5%"),
    ]
    bars = compared_plots.clients_plot(own, shared, {}).data
    assert [(bar.name, bar.x) for bar in bars] == [("Alone", (0.25, 0.5)), ("Federated, shared", (0.75, 0.75))]


def test_report_of_a_comparison_shows_its_controls(compared, tmp_path):
    page = write_report([compared], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Comparison with controls" in page
    assert re.search(r"<td>\+25\.0 \[\+0\.0, \+75\.0\], p = 0\.6[2-5]</td>", page)  # 2 (3/4)^4 = 0.63
    assert "Comparison with controls" not in write_report([compared / "fedcollm"], tmp_path / "page.html").read_text()


def test_several_tasks_are_summed_up_by_role():
    tasks = [
        Compared("one", [Row("FedAvg", {"slm": [0.25]}), Row("FedCoLLM", {"slm": [0.5], "llm": [1.0]})], [0]),
        Compared("two", [Row("FedCoLLM", {"slm": [0.75]})], [0]),
    ]
    table = summary_table(tasks, "slm")
    assert table.header == ("method", "one", "two", "mean")
    assert table.rows == [("FedAvg", "0.250", "–", "–"), ("FedCoLLM", "0.500", "0.750", "0.625")]
    assert summary_table(tasks, "llm").rows == [("FedCoLLM", "1.000", "–", "–")]
    assert len(all_tables(tasks)) == 3 + 2


def test_latex_and_markdown_take_every_sign_literally():
    table = Table("50 % & more_so", ("a#", "$b"), [("x\\y {z} ~ ^", "−1 ± 2 → λ|")])
    assert to_latex([table]) == (
        "% needs \\usepackage{booktabs}\n"
        "\\begin{table}\n"
        "\\caption{50 \\% \\& more\\_so}\n"
        "\\begin{tabular}{lr}\n"
        "\\toprule\n"
        "a\\# & \\$b \\\\\n"
        "\\midrule\n"
        "x\\textbackslash{}y \\{z\\} \\textasciitilde{} \\textasciicircum{} & "
        "$-$1 $\\pm$ 2 $\\rightarrow$ $\\lambda$| \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\end{table}\n"
    )
    assert to_markdown([table]) == (
        "50 % & more\\_so\n\n| a# | $b |\n| --- | --- |\n| x\\\\y {z} ~ ^ | −1 ± 2 → λ\\| |\n"
    )


def test_every_method_has_a_label_and_words():
    assert all(method.label and described(name) for name, method in METHODS.items())
    assert described("fedcollm") == "The method itself, as configured."
    assert described("fedprox") == "FedCoLLM, FedProx clients: client.proximal = 0.01"
    assert described("mine") is None


@pytest.mark.parametrize(
    ("seeds", "half_width", "told"), [([4], None, False), ([4, 5], None, False), ([4, 5, 6], 0.031, True)]
)
def test_more_than_one_seed_brings_the_interval_over_seeds(seeds, half_width, told):
    difference = Difference(0.012, -0.005, 0.029, 0.21, 300, len(seeds), half_width)
    row = Row("plus", {"slm": [0.5] * len(seeds)}, "fedcollm_plus", {"slm": {"fedcollm": difference}})
    table = difference_table(Compared("t", [row], seeds))
    assert table
    assert table.rows == [("plus", "+1.2 [−0.5, +2.9], p = 0.21" + ("; seeds ± 3.1" if told else ""))]
    assert ("over seeds" in table.caption) == told
