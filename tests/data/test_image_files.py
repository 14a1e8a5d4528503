"""The user's own images: class folders and tables, and what is said of every row that is wrong."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from fedcollm.config import FormatConfig
from fedcollm.data.image_files import find_classes, load_images
from fedcollm.data.pool import Pool
from fedcollm.errors import UserError

FOLDERS = FormatConfig()
TABLE = FormatConfig(image="file", answer="kind", group="ward")


def draw(file: Path, shade: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 2), shade).save(file)
    return file


def load(path: Path, format: FormatConfig, **options) -> Pool:
    return load_images(path, format, find_classes(path, format), **options)


def told(examples) -> list[tuple[str, str | None, str | None]]:
    return [(example.id, example.label, example.group) for example in examples or ()]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for number, name in enumerate(["train/cat/b.png", "train/cat/a.PNG", "train/ant/c.jpg", "test/cat/d.bmp"]):
        draw(tmp_path / name, 50 * number)
    return tmp_path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    draw(tmp_path / "images" / "a.png", 0)
    draw(tmp_path / "images" / "b.png", 99)
    file = tmp_path / "train.csv"
    file.write_text("file,kind,ward\nimages/a.png,cat,north\nimages/b.png,ant,south\n", encoding="utf-8")
    return file


def rewrite(table: Path, *rows: str, header: str = "file,kind,ward") -> Path:
    table.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return table


# --- class folders ---


def test_folders_are_classes_in_the_order_of_their_names(folders):
    pool = load(folders, FOLDERS)
    assert told(pool.train) == [
        ("train/ant/c.jpg", "ant", None),
        ("train/cat/a.PNG", "cat", None),
        ("train/cat/b.png", "cat", None),
    ]
    assert told(pool.test) == [("test/cat/d.bmp", "cat", None)]
    assert (pool.public, pool.unlabelled) == (None, None)
    assert find_classes(folders, FOLDERS) == ("ant", "cat")


def test_val_public_and_unlabelled_are_parts_too(folders):
    (folders / "test").rename(folders / "val")
    draw(folders / "public" / "ant" / "e.png", 7)
    draw(folders / "unlabelled" / "f.png", 8)
    pool = load(folders, FOLDERS)
    assert told(pool.test) == [("val/cat/d.bmp", "cat", None)]
    assert told(pool.public) == [("public/ant/e.png", "ant", None)]
    assert told(pool.unlabelled) == [("unlabelled/f.png", None, None)]


def test_files_of_operating_systems_are_left_out(folders):
    for name in ("train/.DS_Store", "train/cat/.hidden", "train/cat/Thumbs.db"):
        (folders / name).touch()
    assert len(load(folders, FOLDERS).train) == 3


def test_listed_classes_keep_their_order_and_refuse_others(folders):
    listed = FormatConfig(choices=["cat", " ant", "dog"])
    assert load(folders, listed).train[0].label == "ant"
    assert find_classes(folders, listed) == ("cat", "ant", "dog")
    with pytest.raises(UserError, match=r"train/ant/c\.jpg: the class 'ant' is not one of .*task\.format\.choices"):
        load(folders, FormatConfig(choices=["cat", "dog"]))


def test_test_class_that_is_not_in_the_training_data_is_refused(folders):
    draw(folders / "test" / "dog" / "x.png", 1)
    with pytest.raises(UserError, match=r"test/dog/x\.png: the class 'dog' is not one of \['ant', 'cat'\]"):
        load(folders, FOLDERS)


@pytest.mark.parametrize("name", ["train/notes.txt", "train/cat/notes.txt", "train/cat/more/x.png", "test/x.png"])
def test_what_is_no_image_in_a_class_folder_is_named(folders, name):
    place = folders / name
    place.parent.mkdir(exist_ok=True)
    place.touch()
    odd = place.parent if "more" in name else place
    with pytest.raises(UserError, match=f"{odd} (is in no class folder|is no image file)"):
        load(folders, FOLDERS)


def test_broken_image_is_named_before_anything_is_trained(folders):
    file = folders / "train" / "cat" / "b.png"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match=r"^[^:]*train/cat/b\.png: can't be read as an image [^:]*$"):
        load(folders, FOLDERS)


@pytest.mark.parametrize("name", ["Public.zip", "validation.csv", "unlabelled.tar.gz"])
def test_file_with_the_name_of_a_part_is_not_overlooked(folders, name):
    for harmless in ("README.md", "train.py", "labels.csv", "test.png"):
        (folders / harmless).write_text("")
    assert len(load(folders, FOLDERS).train) == 3
    (folders / name).write_text("")
    with pytest.raises(UserError, match=rf"{name} would not be read beside the folders of images"):
        load(folders, FOLDERS)


def test_folder_without_images_or_classes_is_refused(folders):
    (folders / "public").mkdir()
    with pytest.raises(UserError, match="public has no images"):
        load(folders, FOLDERS)
    with pytest.raises(UserError, match="has no folder train"):
        load(folders / "test", FOLDERS)
    with pytest.raises(UserError, match="has no folder train"):
        load(folders / "nowhere", FOLDERS)
    (folders / "test").rename(folders / "dev")
    (folders / "val").mkdir()
    with pytest.raises(UserError, match="both dev and val"):
        load(folders, FOLDERS)


def test_folders_of_parts_have_other_names_and_classes_one_spelling(folders):
    draw(folders / "train/fie\u0300vre/e.png", 90)
    (folders / "train").rename(folders / "Training")
    draw(folders / "test/fi\u00e8vre/f.png", 95)
    (folders / "test").rename(folders / "validation")
    pool = load(folders, FOLDERS)
    assert sorted({example.label for example in pool.train}) == ["ant", "cat", "fi\u00e8vre"]
    assert [example.label for example in pool.test] == ["cat", "fi\u00e8vre"]
    draw(folders / "eval/cat/g.png", 99)
    pool = load(folders, FOLDERS)
    assert len(pool.test) == 1
    assert "the validation data is not used" in pool.notes[0]


def test_a_single_class_is_refused_except_at_a_client(folders):
    (folders / "train" / "ant" / "c.jpg").unlink()
    with pytest.raises(UserError, match="all 2 examples have the answer 'cat'"):
        load(folders, FOLDERS)
    assert len(load(folders, FOLDERS, several_classes=False).train) == 2
    (folders / "train" / "ant").rmdir()
    with pytest.raises(UserError, match=r"has the classes \['cat'\]. Give at least two"):
        find_classes(folders, FOLDERS)


# --- tables ---


def test_table_names_images_classes_and_clients(table):
    pool = load(table, TABLE)
    assert told(pool.train) == [("1", "cat", "north"), ("2", "ant", "south")]
    assert [example.source for example in pool.train] == [table.parent / "images" / name for name in ("a.png", "b.png")]
    assert told(load(table.parent, TABLE).train) == told(pool.train)


def test_table_may_have_ids_and_be_json_lines(table):
    rows = [{"id": f"x{i}", "file": f"images/{n}.png", "kind": k, "ward": 1} for i, (n, k) in enumerate(["ax", "by"])]
    file = table.parent / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert told(load(file, TABLE).train) == [("x0", "x", "1"), ("x1", "y", "1")]


@pytest.mark.parametrize("nested", [True, False])
def test_parquet_may_hold_the_files_themselves(table, nested):
    contents = [(table.parent / "images" / name).read_bytes() for name in ("a.png", "b.png")]
    column = [{"bytes": content, "path": None} for content in contents] if nested else contents
    file = table.parent / "rows.parquet"
    parquet.write_table(pa.table({"file": column, "kind": ["cat", "ant"], "ward": ["n", "s"]}), file)
    pool = load(file, TABLE)
    assert [example.source for example in pool.train] == contents
    assert told(pool.train) == [("1", "cat", "n"), ("2", "ant", "s")]


def test_unlabelled_rows_need_no_label(table):
    (table.parent / "unlabelled.csv").write_text("file\nimages/a.png\n", encoding="utf-8")
    assert told(load(table.parent, TABLE).unlabelled) == [("1", None, None)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("images/c.png,cat,n", r"line 3: there is no image 'images/c\.png'"),
        ("images,cat,n", "line 3: there is no image 'images'"),
        ("../outside.png,cat,n", r"line 3: the image '\.\./outside\.png' is outside"),
        ("images/../../outside.png,cat,n", "line 3: the image .* is outside"),
        ("/etc/hosts,cat,n", "line 3: the image '/etc/hosts' is outside"),
        ("images/broken.png,cat,n", r"line 3: .*broken\.png: can't be read as an image"),
        ("images/b.png,,n", r"line 3: column 'kind' \(task\.format\.answer\) is empty"),
        (",cat,n", r"line 3: column 'file' \(task\.format\.image\) is empty"),
        ("images/b.png,cat,", r"line 3: column 'ward' \(task\.format\.group\) is empty"),
    ],
)
def test_row_that_is_wrong_is_named(table, row, said):
    draw(table.parent.parent / "outside.png", 1)
    (table.parent / "images" / "broken.png").write_bytes(b"no image")
    rewrite(table, "images/a.png,ant,north", row)
    with pytest.raises(UserError, match=said):
        load(table, TABLE)


def test_label_that_is_not_listed_is_named(table):
    listed = TABLE.model_copy(update={"choices": ["cat", "dog"]})
    with pytest.raises(UserError, match=r"line 3: answer 'ant' .* is not one of"):
        load(table, listed)


def test_column_that_holds_no_image_is_named(table):
    file = table.parent / "rows.jsonl"
    file.write_text(json.dumps({"file": ["a"], "kind": "cat", "ward": "n"}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 1: column 'file' \(task\.format\.image\) holds \['a'\]"):
        load_images(file, TABLE, ["cat", "ant"])


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no symbolic links")
def test_symbolic_links_are_followed_within_the_folder_only(table):
    outside = draw(table.parent.parent / "private" / "x.png", 1)
    images = table.parent / "images"
    (images / "inner.png").symlink_to(images / "b.png")
    (images / "outer.png").symlink_to(outside)
    (images / "folder").symlink_to(outside.parent)
    rewrite(table, "images/a.png,ant,n", "images/inner.png,cat,n")
    assert load(table, TABLE).train[1].source == images / "b.png"
    for name in ("outer.png", "folder/x.png"):
        rewrite(table, "images/a.png,ant,n", f"images/{name},cat,n")
        with pytest.raises(UserError, match=r"line 3: the image .* is outside"):
            load(table, TABLE)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no symbolic links")
def test_class_folder_that_leads_elsewhere_is_refused(folders, tmp_path_factory):
    elsewhere = draw(tmp_path_factory.mktemp("elsewhere") / "x.png", 1).parent
    (folders / "train" / "dog").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"train/dog/x\.png: the image .* is outside"):
        load(folders, FOLDERS)
