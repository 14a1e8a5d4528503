"""What a process measures about itself."""

import sys
from types import SimpleNamespace

import psutil

from fedcollm.metrics import peak_memory_bytes


def test_peak_memory_is_in_bytes():
    assert 10_000_000 < peak_memory_bytes() < 2**40


def test_linux_counts_kibibytes_and_macos_bytes(monkeypatch):
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=3000))
    monkeypatch.setitem(sys.modules, "resource", usage)
    monkeypatch.setattr(sys, "platform", "linux")
    assert peak_memory_bytes() == 3_072_000
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory_bytes() == 3000


def test_without_resource_it_is_the_peak_of_windows_or_what_is_resident_now(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    for memory in (SimpleNamespace(rss=1000, peak_wset=5000), SimpleNamespace(rss=5000)):
        monkeypatch.setattr(psutil, "Process", lambda memory=memory: SimpleNamespace(memory_info=lambda: memory))
        assert peak_memory_bytes() == 5000
