"""The benchmark of augmentation: its configurations, that it resumes, and its table by hand."""

import json

import pytest
from benchmarks import augmentation


@pytest.mark.parametrize(
    ("kinds", "section"),
    [
        ("none", None),
        ("default", {"kinds": None, "strength": 1.0}),
        ("crop+color", {"kinds": {"crop": 0.5, "color": 0.5}, "strength": 1.0}),
    ],
)
def test_configurations_differ_in_augmentation_alone(kinds, section):
    config = augmentation.configuration("digits", 320, 2, kinds, 4)
    without = augmentation.configuration("digits", 320, 2, "none", 4)
    values = config.model_dump()
    assert values["client"].pop("augmentation") == section
    assert without.model_dump(exclude={"client": {"augmentation"}}) == values
    assert (config.task.clients, config.task.private_size, config.task.partition.kind) == (3, 320, "iid")
    assert augmentation.configuration("spoken_words", 16, 0, kinds="none", epochs=1).task.partition.kind == "natural"


def test_runs_that_are_known_are_not_repeated_and_gains_have_errors(tmp_path, monkeypatch, capsys):
    scores = {"none": {0: 0.5, 1: 0.6}, "default": {0: 0.6, 1: 0.8}}
    made: list[tuple[str, int]] = []

    def measure(config, method):
        kinds = "none" if config.client.augmentation is None else "default"
        made.append((kinds, config.seed))
        return {"scores": {"slm": scores[kinds][config.seed]}, "seconds": 1.0, "cpu_seconds": 1.0}

    monkeypatch.setattr(augmentation, "measure", measure)
    out = tmp_path / "out.json"
    arguments = [str(out), "digits", "--sizes", "16", "--methods", "fedavg", "--seeds"]
    augmentation.main([*arguments, "0"])
    augmentation.main([*arguments, "0,1"])
    assert made == [("none", 0), ("default", 0), ("none", 1), ("default", 1)]
    assert len(json.loads(out.read_text())) == 4
    # gains of 10 and 20 points: mean 15, standard deviation 7.07, standard error 5
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "| digits | 16 | fedavg | none | slm | 55.0 | |",
        "| digits | 16 | fedavg | default | slm | 70.0 | +15.0 ± 5.0 |",
    ]
