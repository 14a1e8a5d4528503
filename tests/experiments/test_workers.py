"""Processes that stand in for runs; that real ones give the same bits is in test_comparison.py."""

import sys

import psutil
import pytest
from tests.conftest import wait_for

from fedcollm.errors import UserError
from fedcollm.experiments.workers import Failed, Job, in_processes, in_this_process, raise_for
from fedcollm.messages import RoundRecord
from fedcollm.runs import directory as run_directory
from fedcollm.runs.build import Inputs


@pytest.fixture
def jobs(tiny_config, tmp_path):
    return [
        Job(f"m/seed-{seed}", tiny_config, tmp_path / f"seed-{seed}", Inputs(shared=tmp_path / ".shared"))
        for seed in (0, 1)
    ]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Has every process run a shell script instead."""

    def make(script: str) -> None:
        file = tmp_path / "python"
        file.write_text(f"#!/bin/sh\nread job\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file))

    return make


def test_job_survives_its_way_to_a_process(jobs):
    assert Job.from_json(jobs[0].to_json()) == jobs[0]


def test_records_are_those_on_disk(jobs, stand_in):
    records = [RoundRecord(0, {"slm": 0.25}), RoundRecord(1, {"slm": 0.5})]
    for job in jobs:
        job.directory.mkdir()
        (job.directory / run_directory.ROUNDS).write_text("".join(f"{record.to_json()}\n" for record in records))
    stand_in("exit 0")
    failed = []
    shown = list(in_processes(jobs, 2, failed))
    assert sorted((place, record.round) for place, record in shown) == [
        ("m/seed-0", 0),
        ("m/seed-0", 1),
        ("m/seed-1", 0),
        ("m/seed-1", 1),
    ]
    assert failed == []


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("""echo noise >&2; echo '{"error": "no data"}' >&2; exit 2""", Failed("m/seed-0", "no data")),
        ("""echo '{"error": "Traceback ..."}' >&2; exit 1""", Failed("m/seed-0", "Traceback ...", fault=True)),
        ("echo no module; exit 1", Failed("m/seed-0", "no module", fault=True)),
        ("exit 3", Failed("m/seed-0", "exit status 3", fault=True)),
        (
            "kill -9 $$",
            Failed("m/seed-0", "its process was killed by signal 9; if memory ran out, lower --jobs"),
        ),
    ],
)
def test_a_failure_says_what_the_process_said(jobs, stand_in, script, expected):
    stand_in(script)
    failed = []
    assert list(in_processes(jobs[:1], 2, failed)) == []
    assert failed == [expected]


def test_processes_end_with_whoever_started_them(jobs, stand_in, tmp_path):
    stand_in(f"echo $$ > {tmp_path}/pid; exec sleep 3600")
    jobs[0].directory.mkdir()
    (jobs[0].directory / run_directory.ROUNDS).write_text(RoundRecord(0).to_json() + "\n")
    running = in_processes(jobs[:1], 1, [])
    next(running)
    file = tmp_path / "pid"
    wait_for(lambda: file.exists() and file.read_text().endswith("\n"))
    running.close()
    assert not psutil.pid_exists(int(file.read_text()))


def test_in_one_process_too_a_failure_stops_nothing_else(jobs, monkeypatch):
    def records(job):
        if job is jobs[0]:
            raise UserError("no data")
        yield RoundRecord(0)

    monkeypatch.setattr(Job, "records", records)
    failed = []
    assert [place for place, _ in in_this_process(jobs, failed)] == ["m/seed-1"]
    assert failed == [Failed("m/seed-0", "no data")]


def test_one_message_for_all_failures():
    raise_for([])
    with pytest.raises(UserError, match=r"no data(?s:.*)b"):
        raise_for([Failed("a", "no data"), Failed("b", "no data")])
    with pytest.raises(RuntimeError, match=r"Traceback(?s:.*)a"):
        raise_for([Failed("a", "no data"), Failed("b", "Traceback", fault=True)])
