"""Paths in a configuration: which values are paths, and what they are relative to."""

from pathlib import Path

import pytest
import yaml

from fedcollm.config import ModelConfig, RunConfig, TaskConfig
from fedcollm.config.loading import load_as_typed, load_config
from fedcollm.config.paths import PATH_KEYS, with_absolute_paths, without_places
from fedcollm.data.texts import TEXTS
from fedcollm.models.pretrained import SHIPPED

FORMAT = {"prompt": "{text}", "answer": "label"}


def model(place: Path) -> None:
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, beside the directory `there` of a configuration file."""
    (tmp_path / "work").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def written(root: Path, **keys: object) -> Path:
    file = root / "there" / "c.yaml"
    file.write_text(yaml.safe_dump(keys))
    return file


def test_a_relative_path_is_beside_the_file_or_else_in_the_working_directory(work: Path):
    file = written(work, task={"path": "x.jsonl", "format": FORMAT}, slm={"source": "./m", "layers": None})
    config = load_config(Path("../there/c.yaml"))
    assert str(config.task.path) == f"{work}/work/../there/x.jsonl"  # nothing is there yet
    (work / "work" / "x.jsonl").touch()
    assert load_config(file).task.path == work / "work" / "x.jsonl"
    (work / "there" / "x.jsonl").touch()
    model(work / "there" / "m")
    config = load_config(file)
    assert (config.task.path, config.slm.source) == (work / "there" / "x.jsonl", str(work / "there" / "m"))
    assert config.task.name == "x"


def test_an_adapter_to_start_from_is_always_a_path(work: Path):
    file = written(work, slm={"adapter": {"start": "theirs"}}, llm={"adapter": {"start": "owner/name"}})
    (work / "there" / "theirs").mkdir()
    (work / "there" / "theirs" / "adapter_config.json").touch()
    config = load_config(file)
    starts = (config.slm.adapter.start, config.llm.adapter.start)
    assert starts == (work / "there" / "theirs", work / "there" / "owner" / "name")


def test_overrides_and_dicts_are_relative_to_the_working_directory(work: Path):
    file = written(work, task={"path": "x.jsonl", "format": FORMAT})
    (work / "there" / "y.jsonl").touch()
    here = work / "work" / "y.jsonl"
    assert load_config(file, **{"task.path": "y.jsonl"}).task.path == here
    assert load_config(file, task={"path": Path("y.jsonl")}).task.path == here
    assert load_config({"task": {"path": "y.jsonl", "format": FORMAT}}).task.path == here


def test_home_is_expanded_and_variables_are_not(work: Path):
    values = {"task": {"path": "~/x.jsonl", "format": FORMAT}, "llm": {"source": "~/m"}}
    config = load_config(values, **{"slm.source": "$HOME/m.gguf", "llm.heal.text": "~nobody-of-that-name/t.txt"})
    assert (config.task.path, config.llm.source) == (work / "home" / "x.jsonl", str(work / "home" / "m"))
    assert config.slm.source == str(work / "work" / "$HOME" / "m.gguf")
    assert config.llm.heal is not None
    assert config.llm.heal.text == str(work / "work" / "~nobody-of-that-name" / "t.txt")


def test_names_and_hub_ids_stay_unless_a_model_or_a_text_is_there(work: Path):
    sources = [*SHIPPED, "owner/name", "vit-digits-small"]
    for source in sources:
        assert load_config({}, **{"slm.source": source}).slm.source == source
    for text in TEXTS:
        (work / "work" / text).touch()
        assert load_config({}, **{"slm.heal.text": text}).slm.heal.text == text  # pyright: ignore
    for source in (*SHIPPED, "owner/name"):
        model(work / "work" / source)
    (work / "work" / "vit-digits-small").mkdir()  # such as the results of a run of that name
    found = [load_config({}, **{"slm.source": source}).slm.source for source in sources]
    assert found == [*SHIPPED, str(work / "work" / "owner" / "name"), "vit-digits-small"]


def test_a_configuration_made_in_python_gets_absolute_paths_too(work: Path):
    config = RunConfig(task=TaskConfig(path=Path("x.jsonl")), llm=ModelConfig(source="./m"))
    placed = with_absolute_paths(config)
    assert (placed.task.path, placed.llm.source) == (work / "work" / "x.jsonl", str(work / "work" / "m"))
    assert with_absolute_paths(placed) is placed
    assert load_config(placed.model_dump()) == placed


def test_clients_are_not_told_where_the_server_keeps_its_files(work: Path):
    heal = {"text": "./secret/t.txt"}
    values = {"task": {"path": "secret/x.jsonl", "format": FORMAT}, "llm": {"source": "./secret/m", "heal": heal}}
    values["llm"]["layers"] = 1
    for load in (load_config, load_as_typed):
        told = without_places(load(values, **{"slm.source": "/srv/small", "slm.layers": None}))
        assert (told.task.path, told.task.name, told.slm.source) == (None, "x", "/srv/small")
        assert (told.llm.source, told.llm.heal and told.llm.heal.text) == ("m", "t.txt")
        assert "secret" not in told.model_dump_json()
    same = load_config({"llm": {"source": "./m"}, "slm": {"source": "./m"}, "server": {"layer_transfer": 1.0}})
    assert without_places(same).llm.source == same.slm.source
    assert load_as_typed({"slm": {"source": "./m"}}).slm.source == "./m"


def test_every_path_of_the_configuration_is_a_path_key():
    assert [name for name, field in TaskConfig.model_fields.items() if "Path" in str(field.annotation)] == ["path"]
    assert PATH_KEYS.keys() >= {"task.path", "slm.source", "llm.source", "slm.heal.text", "llm.heal.text"}
