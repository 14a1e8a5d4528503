"""A row in a table of choices is all that report, `check`, `init` and `compare` need to know of it."""

import importlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType

import pytest
from rich.console import Console

from fedcollm.config import choices
from fedcollm.config.choices import AGGREGATIONS, DIVERGENCES, GATES, LOSSES, SCHEDULES, SERVER_OPTIMIZERS, Choice

ROW = Choice("does this and that", "our own label", "our own phrase")
TABLES = {
    "federation.aggregation": AGGREGATIONS,
    "server.distillation.divergence": DIVERGENCES,
    "server.distillation.gate": GATES,
    "federation.server_optimizer.kind": SERVER_OPTIMIZERS,
    "client.schedule": SCHEDULES,
    "client.loss": LOSSES,
    "server.schedule": SCHEDULES,
}
Load = Callable[[str], ModuleType]


def ours() -> list[str]:
    """Loaded modules of fedcollm, except the one that has the tables."""
    return [name for name in sys.modules if name.split(".")[0] == "fedcollm" and name != choices.__name__]


@pytest.fixture
def load_with(monkeypatch) -> Iterator[Callable[[Mapping[str, Choice], Choice], Load]]:
    """Adds a row "own" to a table, and imports modules anew, as they would be with that row in the source."""

    def add(table: Mapping[str, Choice], row: Choice) -> Load:
        monkeypatch.setitem(table, "own", row)
        for name in ours():
            monkeypatch.delitem(sys.modules, name)
        return lambda name: importlib.import_module(f"fedcollm.{name}")

    yield add
    for name in ours():
        del sys.modules[name]


@pytest.mark.parametrize("key", TABLES)
def test_new_row_is_known_everywhere(load_with, key):
    load = load_with(TABLES[key], ROW)
    config = load("config.baselines").changed(load("config").RunConfig(), {key: "own"})
    assert ROW.phrase in load("report.content").settings(config)
    sink = io.StringIO()
    Console(file=sink, width=200).print(load("cli.check_tables").settings_table(config))
    assert ROW.phrase in sink.getvalue()
    lines = [line for line in load("config.loading").commented_yaml(config).splitlines() if "own: does this" in line]
    assert f"{key.split('.')[-1]}: own" in "".join(lines)
    method = load("config.methods").METHODS["own"]
    assert ROW.label in method.label
    assert ROW.label in load("report.runs").described("own")
    section, leaf = key.rsplit(".", 1)
    value = load("config.methods").METHODS["own"].configure(load("config").RunConfig())[""]
    for name in section.split("."):
        value = getattr(value, name)
    assert getattr(value, leaf) == "own"


@pytest.mark.parametrize("key", TABLES)
def test_new_row_without_words_is_said_by_its_name(load_with, key):
    load = load_with(TABLES[key], Choice("does this and that"))
    config = load("config.baselines").changed(load("config").RunConfig(), {key: "own"})
    assert f"{key}: own" in load("report.content").settings(config)
    assert "own" not in load("config.methods").METHODS
