"""The tables of tasks and modalities."""

import json

import pytest
from PIL import Image
from tests.modalities.audio.clips import tone
from tests.modalities.audio.speech_models import ctc_directory, whisper_directory
from tests.modalities.vision.tiny_classifiers import save_classifier
from tests.modalities.vision.tiny_detectors import save_detector, write_coco

from fedcollm.config import FormatConfig, ModelConfig, TaskConfig
from fedcollm.data.catalogue import (
    MODALITIES,
    TASKS,
    base_models,
    build_client_modality,
    build_modality,
    load_pool,
    load_private,
)
from fedcollm.data.partition import split
from fedcollm.errors import UserError
from fedcollm.modalities.audio.classification import AudioTask
from fedcollm.modalities.audio.files import AudioFileTask
from fedcollm.modalities.audio.recognizers import build_recognizer_for_client
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.cross_tokenizer import TokenizerBridge
from fedcollm.modalities.text.task import TextTask
from fedcollm.modalities.vision.detection import DetectionPair, DetectionTask
from fedcollm.modalities.vision.files import ImageFileTask, ImagePair
from fedcollm.modalities.vision.task import ImageTask


def test_every_task_has_a_modality_and_a_line_of_comment():
    for entry in TASKS.values():
        assert entry.modality in MODALITIES
        assert entry.comment
        assert "\n" not in entry.comment


def test_every_task_is_named_where_the_configuration_is_explained():
    comment = TaskConfig.model_fields["name"].description
    assert all(name in comment for name in TASKS)


@pytest.mark.parametrize(
    "ask",
    [
        lambda task: load_pool(task, 0),
        base_models,
        lambda task: build_modality(task, ModelConfig(), ModelConfig(), False),
        lambda task: build_client_modality(task, ModelConfig(), {}),
    ],
)
def test_unknown_task_is_refused(ask):
    with pytest.raises(UserError, match=r"unknown task 'boolq'.*icd10, arc_easy"):
        ask(TaskConfig(name="boolq"))


def test_own_files_need_a_path_and_a_format(tmp_path):
    with pytest.raises(UserError, match=r"task\.path .* and task\.format"):
        load_pool(TaskConfig(name="custom", path=tmp_path), 0)
    with pytest.raises(UserError, match=r"task\.path .* and task\.format"):
        load_pool(TaskConfig(name="custom", format=FormatConfig(prompt="{a}", answer="b")), 0)


def test_icd10_is_as_large_as_its_parts_need():
    task = TaskConfig(clients=1, private_size=20, public_size=10, unlabelled_size=9, test_size=4)
    assert len(load_pool(task, 0).train) == 63  # 43 examples, in 21 equal chapters: 3 each


def test_pair_of_one_tokenizer_is_a_text_task(tiny_config):
    modality = build_modality(tiny_config.task, tiny_config.slm, tiny_config.llm, False)
    assert isinstance(modality, TextTask)
    assert modality.name == "custom"
    assert modality.of("llm") is modality


def test_pair_of_two_tokenizers_is_a_bridge_if_that_is_allowed(pair_config):
    modality = build_modality(pair_config.task, pair_config.slm, pair_config.llm, True)
    assert isinstance(modality, TokenizerBridge)
    with pytest.raises(UserError, match="have different tokenizers"):
        build_modality(pair_config.task, pair_config.slm, pair_config.llm, False)


def test_client_builds_the_servers_modality_from_its_facts(pair_config):
    whole = build_modality(pair_config.task, pair_config.slm, pair_config.llm, True).of("slm")
    own = build_client_modality(pair_config.task, pair_config.slm, whole.facts())
    assert own.options == whole.options
    with pytest.raises(UserError, match="vocabulary_size"):
        build_client_modality(pair_config.task, pair_config.slm, {"context_length": 32})


def test_images_need_nothing_to_be_loaded():
    task = TaskConfig(name="digits")
    for modality in (
        build_modality(task, ModelConfig(), ModelConfig(), False),
        build_client_modality(task, ModelConfig(), {}),
    ):
        assert isinstance(modality, ImageTask)
        assert modality.classes == tuple("0123456789")


def test_audio_needs_the_names_of_shipped_models_or_directories():
    task = TaskConfig(name="spoken_words")
    slm, llm = (ModelConfig(source=f"ast-words-{size}") for size in ("small", "large"))
    for modality in (build_modality(task, slm, llm, False), build_client_modality(task, slm, {})):
        assert isinstance(modality, AudioTask)
        assert modality.classes[:3] == ("zero", "one", "two")
    with pytest.raises(UserError, match="smollm2-135m"):
        build_modality(task, slm, ModelConfig(), False)


@pytest.mark.parametrize("name", TASKS)
def test_what_is_known_of_models_is_part_of_the_modality(name):
    known = base_models(TaskConfig(name=name))
    whole = {"text": TextTask, "image": ImageTask, "audio": AudioTask, "shapes": DetectionTask}[TASKS[name].modality]
    assert issubclass(whole, (type(known), Modality))
    assert known.causal_lm == whole.causal_lm == (TASKS[name].modality == "text")


def test_bases_are_made_once_where_they_must_be(tiny_config, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path))
    base_models(TaskConfig(name="digits")).prepare(ModelConfig(source="vit-digits-small"))
    assert not list(tmp_path.iterdir())
    base_models(tiny_config.task).prepare(tiny_config.llm.model_copy(update={"layers": 2}))
    assert [place.name.endswith("-2-layers") for place in tmp_path.iterdir() if place.is_dir()] == [True]


def test_own_images_are_a_modality_whose_classes_reach_a_client(tmp_path):
    own = [
        save_classifier("vit", tmp_path / role, image_mean=[mean] * 3) for role, mean in (("slm", 0.5), ("llm", 0.4))
    ]
    slm, llm = (ModelConfig(source=place) for place in own)
    for shade, name in enumerate(("cat", "ant")):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        Image.new("L", (2, 2), shade).save(tmp_path / "data" / "train" / name / "x.png")
    task = TaskConfig(name="custom", path=tmp_path / "data", format=FormatConfig())
    same, pair = build_modality(task, slm, slm, False), build_modality(task, slm, llm, False)
    assert isinstance(same, ImageFileTask)
    assert isinstance(pair, ImagePair)
    assert pair.of("slm").to_wire() != pair.of("llm").to_wire()
    client = build_client_modality(task, slm, pair.of("slm").facts())
    assert isinstance(client, ImageFileTask)
    assert client.classes == ("ant", "cat")
    known = base_models(task)
    assert known.trained_modules(known.outline(slm)) == ["classifier"]
    assert [example.label for example in load_pool(task, 0).train] == ["ant", "cat"]
    (tmp_path / "mine" / "train" / "cat").mkdir(parents=True)
    Image.new("L", (2, 2), 5).save(tmp_path / "mine" / "train" / "cat" / "x.png")
    (example,) = load_private(FormatConfig(), tmp_path / "mine", client).train
    assert (example.label, example.target) == ("cat", 1)
    with pytest.raises(UserError, match="facts lack classes"):
        build_client_modality(task, slm, {})
    with pytest.raises(UserError, match="facts have classes"):
        build_client_modality(task, slm, {"classes": ["a", "\ud800"]})


def server_of_text(root):
    for part in ("public", "test"):
        (root / f"{part}.csv").write_text(f"q,a\n{part} one,x\n{part} two,x\n", encoding="utf-8")
    return FormatConfig(prompt="{q}", choices=["x", "y"], answer="a", group="ward")


def server_of_folders(root):
    for i, place in enumerate(("public/cat", "public/ant", "test/cat")):
        (root / place).mkdir(parents=True)
        Image.new("L", (2, 2), i).save(root / place / "x.png")
    return FormatConfig()


def server_of_images(root):
    for i in range(3):
        Image.new("L", (2, 2), i).save(root / f"{i}.png")
    (root / "public.csv").write_text("file,kind\n0.png,cat\n1.png,ant\n", encoding="utf-8")
    (root / "test.csv").write_text("file,kind\n2.png,cat\n", encoding="utf-8")
    return FormatConfig(image="file", answer="kind", group="ward")


def server_of_sounds(root):
    for i in range(3):
        (root / f"{i}.flac").write_bytes(tone(300 + 300 * i, 0.2).encoded())
    (root / "public.csv").write_text("file,kind\n0.flac,low\n1.flac,high\n", encoding="utf-8")
    (root / "test.csv").write_text("file,kind\n2.flac,high\n", encoding="utf-8")
    return FormatConfig(audio="file", answer="kind", group="ward")


def server_of_boxes(root):
    content = json.loads((write_coco(root, images=4) / "train.json").read_text(encoding="utf-8"))
    (root / "train.json").unlink()
    for part, images in (("public", content["images"][:2]), ("test", content["images"][2:])):
        ids = [image["id"] for image in images]
        boxes = [box for box in content["annotations"] if box["image_id"] in ids]
        (root / f"{part}.json").write_text(json.dumps(content | {"images": images, "annotations": boxes}))
    return FormatConfig(boxes="coco", group="nothing")


@pytest.mark.parametrize(
    ("write", "sizes", "classes"),
    [
        (server_of_text, (0, 2, 2), ()),
        (server_of_folders, (0, 2, 1), ("ant", "cat")),
        (server_of_images, (0, 2, 1), ("ant", "cat")),
        (server_of_sounds, (0, 2, 1), ("high", "low")),
        (server_of_boxes, (0, 2, 2), ("right", "left")),
    ],
)
def test_server_of_a_deployment_needs_no_training_data_and_no_groups(tmp_path, write, sizes, classes):
    (tmp_path / "data").mkdir()
    task = TaskConfig(name="custom", path=tmp_path / "data", format=write(tmp_path / "data"), public_size=1)
    pool = load_pool(task, 0, private=False)
    assert (len(pool.train), len(pool.public or ()), len(pool.test or ())) == sizes
    assert getattr(base_models(task), "classes", ()) == classes
    assert split(pool, task, 0, private=False).private == {}
    with pytest.raises(UserError, match="no training data for the clients"):
        split(pool, task, 0)


def test_own_recordings_reach_a_client_as_its_own_data(tmp_path):
    for name in ("low", "high"):
        (tmp_path / f"{name}.flac").write_bytes(tone({"low": 300, "high": 900}[name], 0.2).encoded())
    (tmp_path / "train.csv").write_text("file,kind,ward\nlow.flac,low,n\nhigh.flac,high,s\n", encoding="utf-8")
    form = FormatConfig(audio="file", answer="kind", group="ward")
    task = TaskConfig(name="custom", path=tmp_path, format=form)
    model = ModelConfig(source="ast-words-small")
    modality = build_modality(task, model, model, False)
    assert isinstance(modality, AudioFileTask)
    client = build_client_modality(task, model, modality.facts())
    assert isinstance(client, AudioFileTask)
    assert client.classes == ("high", "low")
    for odd in ({"classes": ["a", "a"]}, {"milliseconds": 10**400}, {"milliseconds": ["1000"]}):
        with pytest.raises(UserError, match="facts have"):
            build_client_modality(task, model, {**modality.facts(), **odd})
    assert base_models(task).outline(model).config.num_labels == 2
    (tmp_path / "mine.csv").write_text("file,kind\nlow.flac,low\n", encoding="utf-8")
    (example,) = load_private(form, tmp_path / "mine.csv", client).train
    assert (example.label, example.group) == ("low", None)
    (tmp_path / "mine.csv").unlink()
    assert [clip.label for clip in load_pool(task, 0).train] == ["low", "high"]


def test_own_boxes_are_a_modality_whose_classes_reach_a_client(tmp_path):
    places = [save_detector("yolos", tmp_path / role, image_mean=[mean] * 3) for role, mean in (("a", 0.5), ("b", 0.4))]
    slm, llm = (ModelConfig(source=place) for place in places)
    data = write_coco(tmp_path / "data", images=4)
    task = TaskConfig(name="custom", path=data, format=FormatConfig(boxes="coco"))
    same, pair = build_modality(task, slm, slm, False), build_modality(task, slm, llm, False)
    assert isinstance(same, DetectionTask)
    assert isinstance(pair, DetectionPair)
    client = build_client_modality(task, slm, pair.of("slm").facts())
    assert isinstance(client, DetectionTask)
    assert client.classes == ("right", "left")
    known = base_models(task)
    assert known.trained_modules(known.outline(slm)) == ["class_labels_classifier", "bbox_predictor"]
    assert [example.group for example in load_pool(task, 0).train] == ["ward0", "ward1", "ward2", "ward0"]
    assert len(load_private(FormatConfig(boxes="coco", group="nothing"), data, client).train) == 4
    with pytest.raises(UserError, match="facts lack classes"):
        build_client_modality(task, slm, {})
    with pytest.raises(UserError, match="facts have classes"):
        build_client_modality(task, slm, {"classes": ["a", "\ud800"]})


def test_shipped_detectors_are_for_the_drawn_scenes():
    task = TaskConfig(name="shapes")
    slm, llm = (ModelConfig(source=f"cells-shapes-{size}") for size in ("small", "large"))
    modality = build_modality(task, slm, llm, False)
    assert isinstance(modality, DetectionTask)
    assert modality.classes == ("circle", "square", "triangle", "cross", "ring")
    with pytest.raises(UserError, match="smollm2-135m"):
        build_modality(task, slm, ModelConfig(), False)


@pytest.mark.parametrize(
    ("kind", "odd"),
    [("ctc", {"milliseconds": "1000"}), ("whisper", {"prompt": 5}), ("whisper", {"prompt": ["nonsense"]}),
     ("whisper", {"prompt": []}), ("whisper", {"most_tokens": ["x"]}), ("whisper", {"most_tokens": 10**9})],
)  # fmt: skip
def test_speech_of_a_client_is_built_from_valid_facts_only(tmp_path, kind, odd):
    source = {"ctc": ctc_directory, "whisper": whisper_directory}[kind](tmp_path / "model")
    model, facts = (
        ModelConfig(source=source),
        {"milliseconds": 1_000, "prompt": ["<|startoftranscript|>"], "most_tokens": 5},
    )
    assert build_recognizer_for_client("t", model, facts).reader.longest == 1.0
    with pytest.raises(UserError, match=f"facts have {next(iter(odd))}"):
        build_recognizer_for_client("t", model, {**facts, **odd})
