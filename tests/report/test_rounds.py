"""When things happened, who took part, what each class gained, and several tasks on one page; numbers by hand."""

from dataclasses import replace

import pytest

from fedcollm.report import gains, rounds, tasks, write_report
from fedcollm.report.axes import clipped, share_limits
from fedcollm.report.plots import time_plot
from fedcollm.report.runs import group, read_run
from fedcollm.report.score_plots import final_plot
from fedcollm.runs.directory import CONFUSION_START, write_json


def test_timeline_is_of_the_last_three_rounds_one_after_the_other(make_record):
    records = [make_record(index, 0.5) for index in range(5)]  # clients 2 s, distillation 3 s, evaluation 1 s
    records[4] = replace(records[4], lost={"a": "no answer", "b": "x"})
    assert [record.round for record in rounds.last_rounds(records)] == [2, 3, 4]
    figure = rounds.timeline_plot(records)
    assert [(bar.name, bar.base, bar.x) for bar in figure.data] == [
        ("Clients", (0.0, 6.0, 12.0), (2.0, 2.0, 2.0)),
        ("Distillation", (2.0, 8.0, 14.0), (3.0, 3.0, 3.0)),
        ("Evaluation", (5.0, 11.0, 17.0), (1.0, 1.0, 1.0)),
    ]
    assert [note.text for note in figure.layout.annotations] == ["round 2", "round 3", "round 4 ⚠2"]
    assert figure.layout.xaxis.range[0] == 0
    assert rounds.timeline_table(records).rows[4] == ("3", "Distillation", "8.0", "3.0")


def test_attendance_by_hand(make_record):
    records = [make_record(index, 0.5) for index in range(3)]
    records[1] = replace(records[1], participants=("0",), lost={"1": "no answer within 5 s"})
    records[2] = replace(records[2], participants=("1",), lost={"0": "tensor a is not finite"})
    states = rounds.attendance(records, ["0", "1", "2"])
    assert states == {"0": ["took part", "lost"], "1": ["late", "took part"], "2": ["not asked", "not asked"]}
    assert rounds.attendance_table(records, states).rows == [
        ("Client 0", "1", "0", "1", "0", "tensor a is not finite"),
        ("Client 1", "1", "1", "0", "0", "no answer within 5 s"),
        ("Client 2", "0", "0", "0", "2", "–"),
    ]
    marks = {
        trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in rounds.attendance_plot(records, states).data
    }
    assert marks["late"] == [(1, "Client 1")]
    assert marks["lost"] == [(2, "Client 0")]
    many = {str(i): ["took part"] for i in range(100)} | {"100": ["late"]}
    assert len(rounds.most_missed(many)) == 40
    assert "100" in rounds.most_missed(many)


def test_epsilon_by_round(make_record):
    records = [replace(make_record(i, 0.5), epsilon=value) for i, value in enumerate((0.0, 1.25, 2.5))]
    assert rounds.epsilon_plot(records).data[0].y == (0.0, 1.25, 2.5)
    assert rounds.epsilon_table(records).rows == [("0", "0"), ("1", "1.25"), ("2", "2.5")]
    assert rounds.spent([make_record(0, 0.5)]) == {}


def test_gain_per_class_before_and_after(make_run, make_record):
    path = make_run("run", [make_record(0, 0.1), make_record(1, 0.5)])
    after = gains.gain_table(gains.class_gains(read_run(path)))
    assert after.rows[0] == ("bird", "4", "–", "50.0%", "–", "–", "100.0%", "–")
    write_json(path, CONFUSION_START, {"slm": [["cat", "cat", 1], ["cat", "dog", 3], ["bird", "bird", 4]]})
    classes = gains.class_gains(read_run(path))
    assert gains.gain_table(classes).rows == [
        ("bird", "4", "100.0%", "50.0%", "−50.0", "–", "100.0%", "–"),
        ("cat", "4", "25.0%", "75.0%", "+50.0", "–", "100.0%", "–"),
        ("dog", "2", "–", "100.0%", "–", "–", "100.0%", "–"),
    ]
    before, slm, llm = gains.gain_plot(classes).data
    assert (before.name, before.x) == ("Small model, before", (1.0, 0.25, None))
    assert (before.error_x.array, before.error_x.arrayminus) == ((0.0, 0.5, 0.0), (0.5, 0.0, 0.0))
    assert (slm.x, llm.x) == ((0.5, 0.75, 1.0), (1.0, 1.0, 1.0))


def test_several_tasks_have_an_overview_and_are_not_compared(make_run, make_record, tmp_path):
    make_run("all/one/fedcollm/seed-0", [make_record(0, 0.125, 0.25), make_record(1, 0.5, 0.75)], name="fedcollm")
    csqa = {"task": {"name": "digits"}, "name": "fedcollm"}
    make_run("all/two/fedcollm/seed-0", [make_record(0, 0.25), make_record(1, 0.75)], **csqa)
    methods = group(read_run(path) for path in sorted((tmp_path / "all").glob("*/*/seed-0")))
    assert [method.name for method in methods] == ["fedcollm", "fedcollm"]
    assert tasks.of_first_task(methods) == methods[:1]
    assert tasks.several(methods)
    assert not tasks.several(methods[:1])
    assert tasks.overview(methods).rows == [
        ("digits", "FedCoLLM", "25.0%", "75.0%", "+50.0", "–", "–", "–"),
        ("icd10", "FedCoLLM", "12.5%", "50.0%", "+37.5", "25.0%", "75.0%", "+50.0"),
    ]
    page = write_report([tmp_path / "all"], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Scores by task" in page
    assert 'id="plot-final"' not in page


@pytest.mark.parametrize("high", [0.95, 0.5])
def test_axes_and_intervals_show_only_what_is_possible(make_run, make_record, high):
    assert clipped(0.9, 0.25) == (0.65, 1.0)
    assert clipped(-0.5, 0.25) == (-0.75, -0.25)  # no share
    assert share_limits([0.25, -0.5])["range"] == [-0.55, 0.275]
    runs = [
        make_run(f"{name}/seed-{seed}", [make_record(0, 0.5), make_record(1, score)], name=name, seed=seed)
        for name, scores in (("three", (high, high - 0.25, high)), ("two", (0.25, 0.75)))
        for seed, score in enumerate(scores)
    ]
    figure = final_plot(group(map(read_run, runs)))
    dots, means = figure.data
    assert dots.x == (0.25, 0.75)  # one per seed where there are two
    assert means.x[1] == 0.5
    assert means.error_x.array[1] == 0  # and no interval
    assert 0 < means.error_x.array[0] <= 1 - means.x[0] + 1e-9
    assert 0 <= figure.layout.xaxis.range[0] < figure.layout.xaxis.range[1] <= 1.1
    assert time_plot([make_record(1, 0.5)]).layout.yaxis.rangemode == "nonnegative"
