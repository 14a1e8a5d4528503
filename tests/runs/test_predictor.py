"""Trained models are loaded from the files beside their adapters, and predict as they were scored."""

import csv
import json
import shutil

import pyarrow.parquet
import pytest

import fedcollm
from fedcollm.config.baselines import changed
from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.errors import UserError
from fedcollm.runs.portable import PORTABLE, copy_input_files, read_portable
from fedcollm.runs.predict import Options, model_directory, predict_table
from fedcollm.runs.predictor import Predictor
from fedcollm.runs.runner import evaluate_run

ROLES = ("slm", "llm")


def questions(config):
    """The test examples of a run."""
    return split(load_pool(config.task, config.seed), config.task, config.seed).test


def written(path, examples):
    """A table of test examples, with a column of its own and an answer that is not looked at."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "kind", "note"])
        writer.writerows([example.prompt.removesuffix(" is a"), "", f"{i}, kept"] for i, example in enumerate(examples))
    return path


@pytest.fixture
def done(tiny_config, tmp_path):
    """A run of one round."""
    config = changed(tiny_config, {"federation.rounds": 1})
    fedcollm.run(config, tmp_path / "run")
    return config


@pytest.mark.parametrize("role", ROLES)
def test_table_is_predicted_item_by_item_as_it_was_scored(done, tmp_path, role):
    examples, score = questions(done), evaluate_run(tmp_path / "run", role)
    table, out = written(tmp_path / "in.csv", examples), tmp_path / "out.csv"
    assert predict_table(tmp_path / "run", table, out, Options((role,))) == 48
    with out.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    right = [float(row["prediction"] == example.label) for row, example in zip(rows, examples, strict=True)]
    assert right == [score.outcomes[example.id] for example in examples]
    assert [row["note"] for row in rows] == [f"{i}, kept" for i in range(48)]
    assert float(rows[0]["probability_colour"]) + float(rows[0]["probability_animal"]) == pytest.approx(1)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "in.csv", "out.csv"}  # no leftovers


def test_mean_of_both_models_and_every_format(done, tmp_path):
    examples = questions(done)[:3]
    rows = [{"text": example.prompt.removesuffix(" is a"), "n": [i]} for i, example in enumerate(examples)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = Options(ROLES, prefix="both_")
    predict_table(tmp_path / "run", tmp_path / "in.jsonl", tmp_path / "out.jsonl", options)
    predict_table(tmp_path / "run", tmp_path / "in.jsonl", tmp_path / "out.parquet", options)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    slm, llm = (Predictor.load(tmp_path / "run" / "adapters" / role).predict(rows) for role in ROLES)
    for row, one, two, line in zip(rows, slm, llm, lines, strict=True):
        mean = (one.probabilities["colour"] + two.probabilities["colour"]) / 2
        assert line["both_probability_colour"] == pytest.approx(mean, abs=1e-9)
        assert line["both_prediction"] == ("colour" if mean >= 0.5 else "animal")
        assert (line["text"], line["n"]) == (row["text"], row["n"])
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist() == lines


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 60_000}, "no rank of 60000: its largest tensor dimension is"),
        ({"options": {"rank_pattern": {"q_proj": 50_000}}}, "no rank of 50000"),
    ],
)
def test_rank_that_the_adapter_does_not_have_takes_no_memory(done, tmp_path, changes, said):
    place = tmp_path / "run" / "adapters" / "slm"
    values = json.loads((place / PORTABLE).read_text())
    values["model"]["adapter"] |= changes
    (place / PORTABLE).write_text(json.dumps(values))
    with pytest.raises(UserError, match=said):
        Predictor.load(place)


def test_model_that_gives_no_numbers_predicts_nothing(done, tmp_path):
    model = Predictor.load(tmp_path / "run" / "adapters" / "slm")
    for parameter in model.model.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not numbers"):
        model.predict([{"text": "red"}])


def test_choice_that_is_a_formula_is_none_in_a_spreadsheet(done, tmp_path):
    place, table = tmp_path / "run" / "adapters" / "slm", written(tmp_path / "in.csv", questions(done)[:3])
    values = json.loads((place / PORTABLE).read_text())
    values["task"]["format"]["choices"] = ["=colour", "+animal"]
    (place / PORTABLE).write_text(json.dumps(values))
    for name, start in (("out.csv", ("'=", "'+")), ("out.jsonl", ("=", "+"))):
        predict_table(tmp_path / "run", table, tmp_path / name)
        text = (tmp_path / name).read_text()
        rows = (
            list(csv.DictReader(text.splitlines())) if name == "out.csv" else list(map(json.loads, text.splitlines()))
        )
        assert len(rows) == 3
        assert all(row["prediction"].startswith(start) for row in rows)


def test_interrupted_prediction_goes_on(done, tmp_path, monkeypatch):
    examples = questions(done)
    table, asked, predict = written(tmp_path / "in.csv", examples), [0], Predictor.predict_examples

    def dying(self, batch):
        asked[0] += 1
        if asked[0] == 3:
            raise KeyboardInterrupt
        return predict(self, batch)

    monkeypatch.setattr(Predictor, "predict_examples", dying)
    with pytest.raises(KeyboardInterrupt):
        predict_table(tmp_path / "run", table, tmp_path / "out.csv", Options(batch_size=10))
    kept = tmp_path / ".out.csv.predictions"
    kept.write_text(kept.read_text() + '{"role": "slm", "row"')  # a line that the process did not finish
    predict_table(tmp_path / "run", table, tmp_path / "out.csv", Options(batch_size=10))
    assert asked[0] == 3 + 3  # five batches: two before, three after
    predict_table(tmp_path / "run", table, tmp_path / "whole.csv", Options(batch_size=10))
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not kept.exists()


def test_neither_links_nor_predictions_of_others_are_taken(done, tmp_path):
    table = written(tmp_path / "in.csv", questions(done)[:2])
    (tmp_path / "victim.txt").write_text("mine")
    (tmp_path / ".out.csv.predictions").symlink_to(tmp_path / "victim.txt")
    predict_table(tmp_path / "run", table, tmp_path / "out.csv")
    assert (tmp_path / "victim.txt").read_text() == "mine"
    assert not (tmp_path / ".out.csv.predictions").exists()


def test_links_out_of_a_base_are_not_copied(tmp_path):
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "vocab.json").symlink_to(tmp_path / "secret")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    (tmp_path / "base" / "tokenizer_notes.txt").write_text("private")
    (tmp_path / "to").mkdir()
    copy_input_files(str(tmp_path / "base"), tmp_path / "to")
    assert [file.name for file in (tmp_path / "to").iterdir()] == ["tokenizer.json"]


def test_other_tables_and_models_do_not_take_what_was_kept(done, tmp_path):
    table = written(tmp_path / "in.csv", questions(done)[:2])
    kept = tmp_path / ".out.csv.predictions"
    wrong = {"text": "wrong", "probabilities": {"colour": 1.0, "animal": 0.0}, "objects": None}
    kept.write_text("another key\n" + json.dumps({"role": "slm", "row": 0, "prediction": wrong}) + "\n")
    predict_table(tmp_path / "run", table, tmp_path / "out.csv")
    assert "wrong" not in (tmp_path / "out.csv").read_text()


def test_free_answers_are_generated_as_they_were_scored(tiny_config, tmp_path):
    config = changed(tiny_config, {"task.format.choices": None, "federation.rounds": 1, "task.test_size": 12})
    result = fedcollm.run(config, tmp_path / "run")
    examples, score, model = questions(config), evaluate_run(tmp_path / "run", "llm"), result.load("llm")
    found = model.predict([{"text": example.prompt.removesuffix(" is a")} for example in examples])
    assert [float(one.text == example.label) for one, example in zip(found, examples, strict=True)] == [
        score.outcomes[example.id] for example in examples
    ]
    assert model.generate(examples[0].prompt) == found[0].text
    with pytest.raises(UserError, match="free"):
        predict_table(tmp_path / "run", written(tmp_path / "in.csv", examples), tmp_path / "out.csv", Options(ROLES))


def test_adapter_works_alone_elsewhere_and_names_no_path_of_the_data(done, tmp_path):
    place = shutil.copytree(tmp_path / "run" / "adapters" / "slm", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "run")
    assert Predictor.load(place).predict([{"text": "the cat"}])[0].text in ("colour", "animal")
    assert read_portable(place).task.path is None
    assert (place / "tokenizer.json").is_file()


def test_base_that_is_not_the_runs_is_refused(done, tmp_path):
    place = tmp_path / "run" / "adapters" / "slm"
    values = json.loads((place / PORTABLE).read_text())
    name = next(name for name in values["digests"] if name.startswith("weights"))
    values["digests"][name] = "0" * 64
    (place / PORTABLE).write_text(json.dumps(values))
    with pytest.raises(UserError, match="another base"):
        Predictor.load(place)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("[", "can't be read"),
        ("[]", "not a file that fedcollm wrote"),
        ('{"schema_version": 1}', "another version"),
        ('{"schema_version": 2}', "not a file that fedcollm wrote"),
    ],
)
def test_damaged_file_is_refused(tmp_path, content, word):
    (tmp_path / PORTABLE).write_text(content)
    with pytest.raises(UserError, match=word):
        read_portable(tmp_path)


def test_what_can_not_be_predicted_is_refused_before_anything_is_computed(done, tmp_path):
    table, run = written(tmp_path / "in.csv", questions(done)[:2]), tmp_path / "run"
    (tmp_path / "short.csv").write_text("words\nx\n")
    with pytest.raises(UserError, match="no column 'text'"):
        predict_table(run, tmp_path / "short.csv", tmp_path / "out.csv")
    assert not list(tmp_path.glob(".*.predictions"))
    (tmp_path / "taken.csv").write_text("text,prediction\nthe cat,x\n")
    with pytest.raises(UserError, match="--prefix"):
        predict_table(run, tmp_path / "taken.csv", tmp_path / "out.csv")
    with pytest.raises(UserError, match="exists already"):
        predict_table(run, table, table)
    with pytest.raises(UserError, match="unknown ending"):
        predict_table(run, table, tmp_path / "out.xlsx")
    with pytest.raises(UserError, match="there is no directory"):
        predict_table(run, table, tmp_path / "nowhere" / "out.csv")
    with pytest.raises(UserError, match="no trained model of role clients/a"):
        model_directory(run, "clients/a")
    with pytest.raises(UserError, match="no encoding"):
        predict_table(run, table, tmp_path / "out.csv", Options(encoding="klingon"))
