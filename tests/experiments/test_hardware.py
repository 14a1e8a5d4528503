from types import SimpleNamespace

import pytest

from fedcollm.experiments import hardware as capacity


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Four cores and 10 GB available, without limits of a control group."""
    memory = SimpleNamespace(available=10_240_000_000)
    monkeypatch.setattr(capacity.psutil, "Process", lambda: SimpleNamespace(cpu_affinity=lambda: [0, 1, 2, 3]))
    monkeypatch.setattr(capacity.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(capacity, "_GROUP", tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path


def test_cores_are_those_of_the_process_within_its_quota(machine):
    assert capacity.cores() == 4
    (machine / "cpu.max").write_text("max 100000\n")
    assert capacity.cores() == 4
    (machine / "cpu.max").write_text("250000 100000\n")
    assert capacity.cores() == 2


def test_cores_without_an_affinity_are_those_of_the_machine(machine, monkeypatch):
    monkeypatch.setattr(capacity.psutil, "Process", SimpleNamespace)
    monkeypatch.setattr(capacity.psutil, "cpu_count", lambda: 8)
    assert capacity.cores() == 8
    monkeypatch.setattr(capacity.psutil, "cpu_count", lambda: None)  # it can't tell
    assert capacity.cores() == 1


def test_this_machine_has_cores_and_memory():
    assert capacity.cores() >= 1
    assert capacity.available_bytes() > 0


def test_memory_is_what_the_system_and_the_group_leave(machine):
    assert capacity.available_bytes() == 10_240_000_000
    (machine / "memory.max").write_text("max\n")
    (machine / "memory.current").write_text("3000000000\n")
    (machine / "memory.stat").write_text("anon 1\ninactive_file 1000000000\n")
    assert capacity.available_bytes() == 10_240_000_000
    (machine / "memory.max").write_text("4000000000\n")
    assert capacity.available_bytes() == 2_000_000_000  # 4 - 3, and 1 of files that can be dropped


def test_every_process_gets_its_share_of_the_cores(machine, monkeypatch):
    assert [capacity.threads_each(jobs) for jobs in (1, 2, 3, 14)] == [4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert capacity.threads_each(2) == 1  # fewer, if the user says so
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert capacity.threads_each(2) == 2


def test_as_many_runs_as_memory_and_cores_allow(machine, monkeypatch):
    assert capacity.fitting_jobs([500_000_000, 200_000_000]) == 4  # 6 by memory, 4 by cores
    assert capacity.fitting_jobs([4_000_000_000]) == 2
    assert capacity.fitting_jobs([40_000_000_000]) == 1
    assert capacity.fitting_jobs([500_000_000], cuda=True) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert capacity.fitting_jobs([0]) == 2
