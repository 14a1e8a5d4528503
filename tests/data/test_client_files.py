"""The data of a client of a deployment: files of its own in the columns of the agreed task."""

import json

import pytest
from tests.modalities.audio.clips import tone
from tests.modalities.vision.tiny_detectors import write_coco

from fedcollm.config import FormatConfig, ModelConfig, TaskConfig
from fedcollm.data.catalogue import build_client_modality, load_pool
from fedcollm.data.client_files import data_in_words, load_client
from fedcollm.data.sources.professions import ABOUT
from fedcollm.errors import UserError
from fedcollm.modalities.audio.recordings import Recording
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.examples import example_lines, read_examples


class Text(Modality):
    """As much of one as reads the lines that fedcollm writes."""

    load_model = collate = logits = score = None

    def read_examples(self, path):
        return read_examples(path)


QUESTION = "question,choices,answer\nWhich one?,red|blue,B\n"


def test_diagnoses_of_a_clients_own_table_are_those_of_the_task(tmp_path):
    shipped = load_pool(TaskConfig(name="icd10"), 0).train[0]
    file = tmp_path / "mine.csv"
    file.write_text(f'id,description,chapter\n{shipped.id},"{shipped.prompt.removesuffix(":")}",{shipped.label}\n')
    assert load_client(TaskConfig(name="icd10"), file, Text()).train == [shipped]


@pytest.mark.parametrize(
    ("task", "table", "prompt", "choices"),
    [
        ("arc_easy", QUESTION, "Question: Which one?\nAnswer:", ("red", "blue")),
        ("openbookqa", QUESTION, "Which one?", ("red", "blue")),
        ("commonsense_qa", QUESTION, "Question: Which one?\nA. red\nB. blue\nAnswer:", ("A", "B")),
        (
            "professions",
            "subject,question,choices,answer\nlaw,Which one?,red|blue,blue\n",
            ABOUT.format(subject="law") + "Which one?\nA. red\nB. blue\nAnswer:",
            ("A", "B"),
        ),
    ],
)
def test_questions_of_a_clients_own_tables_have_the_prompts_of_the_task(tmp_path, task, table, prompt, choices):
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text(table)
    pool = load_client(TaskConfig(name=task), tmp_path, Text())
    assert [(one.prompt, one.choices, one.answer) for one in (*pool.train, *(pool.test or ()))] == [
        (prompt, choices, 1)
    ] * 2


def test_lines_that_demo_data_writes_are_still_read(tmp_path):
    shipped = load_pool(TaskConfig(name="icd10"), 0).train[:3]
    (tmp_path / "train.jsonl").write_text(example_lines(shipped[:2]))
    (tmp_path / "test.jsonl").write_text(example_lines(shipped[2:]))
    pool = load_client(TaskConfig(name="icd10"), tmp_path, Text())
    assert ([*pool.train], pool.test) == (shipped[:2], shipped[2:])
    assert load_client(TaskConfig(name="icd10"), tmp_path / "train.jsonl", Text()).train == shipped[:2]


def test_recordings_are_a_table_of_paths_or_lines(tmp_path):
    task, model = TaskConfig(name="spoken_words"), ModelConfig(source="ast-words-small")
    modality = build_client_modality(task, model, {})
    (tmp_path / "a.flac").write_bytes(tone(300, 0.2).encoded())
    (tmp_path / "train.csv").write_text("audio,class\na.flac,yes\n")
    (example,) = load_client(task, tmp_path, modality).train
    assert example.label == "yes"
    assert isinstance(example.recording, Recording)
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "train.jsonl").write_text(modality.write_examples([example]))
    (again,) = load_client(task, tmp_path / "lines", modality).train
    assert (again.content, again.label) == (example.content, "yes")
    (tmp_path / "train.csv").write_text("audio,class\na.flac,perhaps\n")
    with pytest.raises(
        UserError, match=r"^--data: .*'perhaps' is not one of .*the columns audio \(the path of a file, rel"
    ):
        load_client(task, tmp_path, modality)


def test_scenes_are_in_the_format_of_coco_or_lines(tmp_path):
    task, model = TaskConfig(name="shapes"), ModelConfig(source="cells-shapes-small")
    content = json.loads((write_coco(tmp_path, images=2) / "train.json").read_text())
    names = ("circle", "square")
    modality = build_client_modality(task, model, {"classes": [*names, "star"]})
    renamed = [one | {"name": name} for one, name in zip(content["categories"], names, strict=True)]
    (tmp_path / "train.json").write_text(json.dumps(content | {"categories": renamed}))
    examples = load_client(task, tmp_path, modality).train
    assert {box.label for example in examples for box in example.boxes} <= set(names)
    (tmp_path / "train.jsonl").write_text(modality.write_examples(examples))
    assert [one.boxes for one in load_client(task, tmp_path, modality).train] == [one.boxes for one in examples]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("text,kind\nflu,lung\n", "'description'"),
        ("description,chapter\nflu,fish\n", "'fish'"),
        ("description,chapter\n", "no rows"),
        (None, "no train file"),
    ],
)
def test_faults_name_the_columns_and_not_the_configuration_alone(tmp_path, rows, reason):
    if rows is not None:
        (tmp_path / "train.csv").write_text(rows)
    with pytest.raises(UserError) as error:
        load_client(TaskConfig(name="icd10"), tmp_path, Text())
    text = str(error.value)
    assert text.startswith("--data: ")
    assert reason in text
    assert "server" not in text
    assert (
        "so mend the data. It needs a table (CSV, JSON, Parquet, ...) with the columns description and chapter" in text
    )


@pytest.mark.parametrize("form", [None, FormatConfig(prompt="{a}", choices=["x", "y"], answer="b")])
def test_public_and_test_parts_alone_are_no_clients_data(tmp_path, form):
    for part in ("public", "test"):
        (tmp_path / f"{part}.csv").write_text("a,b,description,chapter\nq,x,flu,lung\n")
    with pytest.raises(UserError, match="has no train file"):
        load_client(TaskConfig(name="icd10" if form is None else "custom", format=form), tmp_path, Text())


TABLE = "a table (CSV, JSON, Parquet, ...) with the "
CHAPTERS = "infection, cancer, blood, hormone, mental"
FILE = "file (the path of a file, relative to the table)"


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("icd10", f"{TABLE}columns description and chapter (the answer: {CHAPTERS} and 16 more)"),
        ("arc_easy", f"{TABLE}columns question, choices and answer (the answer)"),
        ("professions", f"{TABLE}columns subject, question, choices and answer (the answer)"),
        ("spoken_words", f"{TABLE}columns {FILE.replace('file (', 'audio (', 1)} and class (the answer)"),
        ("shapes", "images with boxes in the format of COCO: a directory with train.json and a folder images"),
        ({}, "images in a folder for each class, train/CLASS/"),
        ({"choices": ["a", "b"]}, "images in a folder for each class, train/CLASS/: a, b"),
        ({"messages": "talk"}, f"{TABLE}column talk"),
        ({"image": "file", "answer": "kind", "group": "ward"}, f"{TABLE}columns {FILE} and kind (the answer)"),
        ({"audio": "file", "transcript": "said"}, f"{TABLE}columns {FILE} and said (what is said)"),
        ({"prompt": "{a} {b}", "answer": "c", "group": "g"}, f"{TABLE}columns a, b and c (the answer)"),
    ],
)  # fmt: skip
def test_what_a_client_needs_in_words(task, words):
    config = TaskConfig(name=task) if isinstance(task, str) else TaskConfig(name="custom", format=FormatConfig(**task))
    assert data_in_words(config) == words
