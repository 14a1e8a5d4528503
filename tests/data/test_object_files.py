"""The user's own boxes in the formats of COCO and Pascal VOC, and what is said of everything that is wrong."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from tests.conftest import SHARED

from fedcollm.config import FormatConfig
from fedcollm.data.object_files import find_object_classes, load_objects
from fedcollm.data.pool import Pool
from fedcollm.errors import UserError
from fedcollm.modalities.vision.boxes import NOTHING, Box

COCO, VOC = FormatConfig(boxes="coco"), FormatConfig(boxes="voc")
CELLS = SHARED / "blood_cells"


def draw(file: Path, shade: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (shade, shade, shade)).save(file)


def load(path: Path, format: FormatConfig) -> Pool:
    return load_objects(path, format, find_object_classes(path, format))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


# --- COCO ---


@pytest.fixture
def content() -> dict:
    return {
        "images": [
            {"id": 1, "file_name": "north/a.png", "ward": "W1"},
            {"id": 2, "file_name": "b.png", "ward": "W2"},
        ],
        "annotations": [
            {"image_id": 1, "category_id": 5, "bbox": [1, 2, 4, 5.5]},
            {"image_id": 1, "category_id": 2, "bbox": [15, 0, 10, 5], "iscrowd": 0},
            {"image_id": 1, "category_id": 2, "bbox": [3, 3, 0, 5]},
            {"image_id": 1, "category_id": 2, "bbox": [0, 0, 20, 10], "iscrowd": 1},
        ],
        "categories": [{"id": 5, "name": "red"}, {"id": 2, "name": "white"}],
    }


@pytest.fixture
def coco(tmp_path: Path, content: dict) -> Path:
    draw(tmp_path / "images" / "north" / "a.png")
    draw(tmp_path / "images" / "b.png", 9)
    (tmp_path / "train.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def test_coco(coco):
    pool = load(coco, COCO)
    first, second = pool.train
    assert first.classes == ("white", "red")  # in the order of their ids
    assert first.boxes == (Box(1, 2, 5, 7.5, "red"), Box(15, 0, 20, 5, "white"))
    assert first.changed == {"clipped": 1, "no_area": 1, "crowd": 1}
    assert (first.id, first.group, first.label) == ("north/a.png", "north", "white")
    assert (second.boxes, second.group, second.label) == ((), None, NOTHING)
    assert (pool.test, pool.public, pool.unlabelled) == (None, None, None)


def test_coco_with_all_parts_and_images_beside_its_files(coco, content):
    (coco / "images" / "north").rename(coco / "north")
    (coco / "images" / "b.png").rename(coco / "b.png")
    (coco / "images").rmdir()
    for name in ("val", "public", "unlabelled"):
        (coco / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    pool = load(coco, FormatConfig(boxes="coco", group="ward", choices=["red", "blue", "white"]))
    assert [example.group for example in pool.train] == ["W1", "W2"]
    assert [len(part) for part in (pool.test, pool.public, pool.unlabelled)] == [2, 2, 2]
    assert pool.unlabelled[0].boxes is None
    assert pool.train[0].classes == ("red", "blue", "white")


def test_files_of_one_part_may_not_be_two(coco):
    for name in ("val", "dev"):
        (coco / f"{name}.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"both val and dev"):
        load(coco, COCO)


WRONG = {
    "a list": ([], "is no object"),
    "no images": ({"images": None}, "images is None"),
    "images are no objects": ({"images": [3]}, "needs a list of objects"),
    "empty": ({"images": [], "annotations": []}, "lists no images"),
    "no file_name": ({"images": [{"id": 1}]}, "has no file_name"),
    "no id": ({"images": [{"file_name": "b.png"}]}, "has no id"),
    "odd id": ({"images": [{"file_name": "b.png", "id": [1]}]}, "id is"),
    "odd name": ({"images": [{"file_name": 4, "id": 1}]}, "file_name is 4"),
    "missing image": ({"images": [{"file_name": "c.png", "id": 1}], "annotations": []}, "no image 'c.png'"),
    "image outside": ({"images": [{"file_name": "../../c.png", "id": 1}], "annotations": []}, "outside"),
    "absolute image": ({"images": [{"file_name": "/etc/c.png", "id": 1}], "annotations": []}, "outside"),
    "unknown image": ({"annotations": [{"image_id": 9, "category_id": 5, "bbox": [0, 0, 1, 1]}]}, "image_id 9"),
    "unknown category": ({"annotations": [{"image_id": 1, "category_id": 9, "bbox": [0, 0, 1, 1]}]}, "category_id 9"),
    "no bbox": ({"annotations": [{"image_id": 1, "category_id": 5}]}, "has no bbox"),
    "short bbox": ({"annotations": [{"image_id": 1, "category_id": 5, "bbox": [1, 2, 3]}]}, "is no box"),
    "text in bbox": ({"annotations": [{"image_id": 1, "category_id": 5, "bbox": [1, 2, 3, "4"]}]}, "is no box"),
    "infinite bbox": (
        {"annotations": [{"image_id": 1, "category_id": 5, "bbox": [1, 2, 3, float("inf")]}]},
        "no finite number",
    ),
    "no categories": ({"categories": [], "annotations": []}, "at least one class"),
    "twice the same name": ({"categories": [{"id": 5, "name": "x"}, {"id": 2, "name": "x"}]}, "each only once"),
    "no name": ({"categories": [{"id": 5}]}, "has no name"),
    "equal categories": (
        {"categories": [{"id": 5, "name": "x"}, {"id": 2, "name": "y"}, {"id": 5, "name": "z"}]},
        r"category 3: id 5 is already that of .*category 1",
    ),
    "equal images": (
        {"images": [{"id": 1, "file_name": "north/a.png"}, {"id": 1, "file_name": "b.png"}]},
        r"image 2: id 1 is already that of .*image 1",
    ),
    "bool as id of a category": (
        {"categories": [{"id": True, "name": "x"}, {"id": 2, "name": "y"}], "annotations": []},
        "id is True",
    ),
    "bool as id of an image": ({"images": [{"id": True, "file_name": "b.png"}]}, "image 1: id is True"),
    "bool as image_id": (
        {"annotations": [{"image_id": True, "category_id": 5, "bbox": [0, 0, 1, 1]}]},
        "annotation 1: image_id is True",
    ),
    "bool as category_id": (
        {"annotations": [{"image_id": 1, "category_id": False, "bbox": [0, 0, 1, 1]}]},
        "annotation 1: category_id is False",
    ),
    "fraction as id": ({"images": [{"id": 1.0, "file_name": "b.png"}]}, r"id is 1\.0"),
    "which annotation has an unknown image": (
        {
            "annotations": [
                {"image_id": 1, "category_id": 5, "bbox": [0, 0, 1, 1]},
                {"image_id": "1", "category_id": 5, "bbox": [0, 0, 1, 1]},
            ]
        },
        "annotation 2: image_id '1' is the id of no image",
    ),
    "more than a float can be": (
        {"annotations": [{"image_id": 1, "category_id": 5, "bbox": [1, 2, 10**400, 3]}]},
        "annotation 1: bbox .* is no box",
    ),
    "a class that means nothing": ({"categories": [{"id": 5, "name": NOTHING}, {"id": 2, "name": "x"}]}, "Rename"),
    "a width that is no number": (
        {"images": [{"id": 1, "file_name": "b.png", "width": "20"}]},
        "image 1: width is '20'",
    ),
    "a height that is no whole number": (
        {"images": [{"id": 1, "file_name": "b.png", "height": float("nan")}]},
        "image 1: height is nan",
    ),
    "another size": (
        {"images": [{"id": 1, "file_name": "b.png", "width": 2000, "height": 1000}]},
        r"image 1: the stated size is 2000 x 1000 pixels, but 'b\.png' has 20 x 10\. Give the image",
    ),
    "another height": ({"images": [{"id": 1, "file_name": "b.png", "height": 11}]}, "20 x 11 pixels, but .* 20 x 10"),
    "no box": ({"annotations": []}, r"train\.json: no image of the train set has a box.* no object can be learned"),
    "only boxes without area": (
        {"annotations": [{"image_id": 1, "category_id": 5, "bbox": [1, 2, 0, 3]}]},
        "no object can be learned",
    ),
}


@pytest.mark.parametrize(("changes", "said"), WRONG.values(), ids=WRONG)
def test_coco_that_is_wrong_is_named(coco, content, changes, said):
    new = changes if isinstance(changes, list) else content | changes
    (coco / "train.json").write_text(json.dumps(new), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load(coco, COCO)


@pytest.mark.parametrize("value", ["0", [], 2, True, None, 1.0])
def test_iscrowd_is_0_or_1(coco, content, value):
    content["annotations"][1]["iscrowd"] = value
    (coco / "train.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="annotation 2: iscrowd is"):
        load(coco, COCO)


@pytest.mark.parametrize("value", [{"a": 1}, [1], True, "", " ", float("nan"), float("inf")])
def test_group_is_a_text_or_a_number(coco, content, value):
    content["images"][1]["ward"] = value
    (coco / "train.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"image 2: ward \(task\.format\.group\) is"):
        load(coco, FormatConfig(boxes="coco", group="ward"))


def test_group_may_be_a_number(coco, content):
    content["images"][0]["ward"], content["images"][1]["ward"] = 3, " 3 "
    (coco / "train.json").write_text(json.dumps(content), encoding="utf-8")
    assert [one.group for one in load(coco, FormatConfig(boxes="coco", group="ward")).train] == ["3", "3"]


def test_size_that_is_stated_and_right_is_accepted(coco, content):
    content["images"][0] |= {"width": 20, "height": 10.0}
    content["images"][1] |= {"width": None}
    (coco / "train.json").write_text(json.dumps(content), encoding="utf-8")
    assert len(load(coco, COCO).train) == 2


def test_size_of_an_image_that_exif_turns_is_that_of_the_upright_one(coco, content):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter
    Image.new("RGB", (20, 10)).save(coco / "images" / "b.png", exif=turned)
    content["images"][1] |= {"width": 10, "height": 20}
    (coco / "train.json").write_text(json.dumps(content), encoding="utf-8")
    assert load(coco, COCO).train[1].width == 10
    content["images"][1] |= {"width": 20, "height": 10}
    (coco / "train.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"20 x 10 pixels, but 'b\.png' has 10 x 20\. The EXIF data .* upright image"):
        load(coco, COCO)


def test_test_set_without_a_box_is_refused(coco, content):
    (coco / "test.json").write_text(json.dumps(content | {"annotations": []}), encoding="utf-8")
    with pytest.raises(UserError, match=r"test\.json: no image of the test set has a box .*nothing can be scored"):
        load(coco, COCO)


def test_data_of_one_client_may_have_no_object(coco, content):
    for name in ("train", "test"):
        (coco / f"{name}.json").write_text(json.dumps(content | {"annotations": []}), encoding="utf-8")
    pool = load_objects(coco, COCO, ("red",), needs_objects=False)
    assert [example.boxes for example in pool.train] == [(), ()]


def test_coco_that_is_no_json_is_named(coco):
    (coco / "train.json").write_text('{"images": [', encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.json: not valid JSON"):
        load(coco, COCO)
    (coco / "train.json").unlink()
    with pytest.raises(UserError, match=r"has no file train\.json"):
        load(coco, COCO)


def test_class_that_is_not_listed_is_named(coco):
    with pytest.raises(UserError, match="class 'red'"):
        load(coco, FormatConfig(boxes="coco", choices=["white"]))


def test_group_that_is_missing_is_named(coco):
    with pytest.raises(UserError, match="has no hospital"):
        load(coco, FormatConfig(boxes="coco", group="hospital"))


def test_truncated_image_is_named(coco):
    cut(coco / "images" / "b.png")
    with pytest.raises(UserError, match=r"image 2: .*b\.png: can't be read as an image"):
        load(coco, COCO)


@pytest.mark.skipif(os.name == "nt", reason="Windows needs a privilege for symbolic links")
def test_symbolic_link_does_not_lead_out(coco, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    draw(outside)
    (coco / "images" / "b.png").unlink()
    (coco / "images" / "b.png").symlink_to(outside)
    with pytest.raises(UserError, match="outside"):
        load(coco, COCO)


@pytest.mark.skipif(os.name == "nt", reason="Windows needs a privilege for symbolic links")
def test_folder_of_images_does_not_lead_out_but_the_data_may_be_a_link(coco, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "data").symlink_to(coco)
    assert len(load(outside / "data", COCO).train) == 2
    (coco / "images").rename(coco / "pictures")
    (coco / "images").symlink_to(coco / "pictures")
    assert len(load(coco, COCO).train) == 2
    (coco / "pictures").rename(outside / "pictures")
    (coco / "images").unlink()
    (coco / "images").symlink_to(outside / "pictures")
    with pytest.raises(UserError, match=r"images: the folder of the images is a symbolic link that leads out"):
        load(coco, COCO)


@pytest.mark.skipif(not CELLS.is_dir(), reason="the blood cells are not in ../shared/data")
def test_blood_cells_have_two_boxes_without_area():
    """The boxes alone: the images are in an archive."""
    from fedcollm.data.coco_files import coco_images

    images = [image for part in ("train", "val", "test") for image in coco_images(CELLS / f"{part}.json", CELLS, COCO)]
    boxes = [box for image in images for box in image.boxes]
    assert (len(images), len(boxes)) == (364, 4888)
    assert sum(box.area == 0 for box in boxes) == 2


# --- Pascal VOC ---

OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"

RED = OBJECT.format("red", 1, 2, 3, 4)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for number, name in enumerate(("north/a", "b")):
        draw(tmp_path / "JPEGImages" / f"{name}.{('jpg', 'PNG')[number]}", number)
        (tmp_path / "Annotations" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("north/a  1\n\nb -1\n", encoding="utf-8")
    first = OBJECT.format("red", 2, 3, 5, 8) + OBJECT.format("white", 16, 1, 25, 5)
    (tmp_path / "Annotations" / "north" / "a.xml").write_text(f"<annotation>{first}</annotation>", encoding="utf-8")
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation></annotation>", encoding="utf-8")
    return tmp_path


def test_voc(voc):
    """The first pixel is 1, and the last one belongs to the box."""
    first, second = load(voc, VOC).train
    assert first.boxes == (Box(1, 2, 5, 8, "red"), Box(15, 0, 20, 5, "white"))
    assert (first.classes, first.group, first.changed["clipped"]) == (("red", "white"), "north", 1)
    assert (second.id, second.boxes, second.group) == ("b", (), None)


def test_voc_unlabelled_images_need_no_annotation(voc):
    draw(voc / "JPEGImages" / "c.png", 7)
    (voc / "ImageSets" / "Main" / "unlabelled.txt").write_text("c\n", encoding="utf-8")
    (example,) = load(voc, VOC).unlabelled or ()
    assert example.boxes is None


def test_voc_ignores_parts_and_accepts_a_size_that_is_right(voc):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    size = "<size><width>20</width><height>10</height><depth>3</depth></size>"
    text = f"<annotation>{size}{RED.replace('</object>', part)}</annotation>"
    (voc / "Annotations" / "b.xml").write_text(text, encoding="utf-8")
    assert load(voc, VOC).train[1].boxes == (Box(0, 1, 3, 4, "red"),)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "x\0"])
def test_voc_name_that_no_file_can_have_is_named(voc, name):
    for part in ("unlabelled", "train"):
        (voc / "ImageSets" / "Main" / f"{part}.txt").write_text(f"{name}\n", encoding="utf-8")
        with pytest.raises(UserError, match=r"there is no (image|annotation) '"):
            load_objects(voc, VOC, ("red", "white"))


def test_voc_longest_name_that_a_file_can_have(voc):
    """With the suffix .jpeg it would be too long, with .jpg it is not."""
    name = "x" * 251
    draw(voc / "JPEGImages" / f"{name}.jpg", 7)
    (voc / "ImageSets" / "Main" / "unlabelled.txt").write_text(f"{name}\n", encoding="utf-8")
    (example,) = load(voc, VOC).unlabelled or ()
    assert example.id == name


def test_voc_name_of_two_images_is_refused(voc):
    draw(voc / "JPEGImages" / "b.bmp", 3)
    with pytest.raises(UserError, match=r"both b\.bmp and b\.PNG"):
        load(voc, VOC)


@pytest.mark.skipif(os.name == "nt", reason="Windows needs a privilege for symbolic links")
@pytest.mark.parametrize("folder", ["Annotations", "JPEGImages"])
def test_voc_folder_does_not_lead_out(voc, tmp_path_factory, folder):
    outside = tmp_path_factory.mktemp("outside") / folder
    (voc / folder).rename(outside)
    (voc / folder).symlink_to(outside)
    with pytest.raises(UserError, match=f"{folder}: the folder of the .* leads out"):
        load(voc, VOC)


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>'
FILE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "document type"),
        (FILE, "document type"),
        ("<!DOCTYPE annotation SYSTEM 'x.dtd'><annotation/>", "document type"),
        ("<annotation>&x;</annotation>", "not valid XML"),
        ("<annotation>", "not valid XML"),
        ("", "not valid XML"),
        ("<annotation><object><name>red</name></object></annotation>", "no bndbox"),
        ("<annotation><object><bndbox/></object></annotation>", "no name"),
        (
            "<annotation><object><name>red</name><bndbox><xmin>1</xmin></bndbox></object></annotation>",
            "bndbox of 'red'",
        ),
        (f"<annotation>{OBJECT.format('red', 1, 2, 'x', 4)}</annotation>", "bndbox of 'red'"),
        (f"<annotation>{OBJECT.format('red', 1, 2, 'nan', 4)}</annotation>", "no finite number"),
        ("<html/>", "begins with 'html'"),
        ("<Annotation/>", "begins with 'Annotation'"),
        (f"<annotation><part>{RED}</part></annotation>", "inside of another element"),
        (f"<annotation>{RED.replace('</object>', RED + '</object>')}</annotation>", "inside of another element"),
        (f"<annotation>{RED.replace('</object>', '<bndbox/></object>')}</annotation>", "2 times bndbox"),
        (f"<annotation>{RED.replace('</object>', '<name>x</name></object>')}</annotation>", "2 times name"),
        (f"<annotation>{RED.replace('</bndbox>', '<xmin>3</xmin></bndbox>')}</annotation>", "2 times xmin"),
        (f"<annotation>{OBJECT.format(' ', 1, 2, 3, 4)}</annotation>", "name of an object is empty"),
        (f"<annotation>{OBJECT.format(NOTHING, 1, 2, 3, 4)}</annotation>", "Rename"),
        ("<annotation><size><width>x</width></size></annotation>", "width is 'x'"),
        ("<annotation><size/><size/></annotation>", "2 times size"),
        (
            "<annotation><size><width>30</width><height>10</height></size></annotation>",
            r"30 x 10 pixels, but 'b\.PNG' has 20 x 10",
        ),
    ],
)
def test_annotation_that_is_wrong_is_named(voc, text, said):
    (voc / "Annotations" / "b.xml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load(voc, VOC)


def test_what_is_missing_is_named(voc):
    (voc / "Annotations" / "b.xml").unlink()
    with pytest.raises(UserError, match=r"no annotation 'b\.xml'"):
        load(voc, VOC)
    (voc / "Annotations" / "b.xml").write_text("<annotation/>", encoding="utf-8")
    (voc / "JPEGImages" / "b.PNG").unlink()
    with pytest.raises(UserError, match=r"no image 'b\.jpg'"):
        load(voc, VOC)
    (voc / "ImageSets" / "Main" / "train.txt").write_text("../b\n", encoding="utf-8")
    with pytest.raises(UserError, match="outside"):
        load(voc, VOC)
    (voc / "ImageSets" / "Main" / "train.txt").unlink()
    with pytest.raises(UserError, match=r"no file ImageSets/Main/train\.txt"):
        load(voc, VOC)
