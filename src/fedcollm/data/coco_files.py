"""Read annotations in the JSON format of COCO (Lin et al., arXiv 1405.0312): `images`, `annotations`, `categories`.

A box, `bbox`, is left, top, width and height in pixels. Segmentations are ignored. A region of many objects (`iscrowd`)
is left out, and counted.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from fedcollm.config import FormatConfig
from fedcollm.data.labelled_images import LabelledImage, top_folder
from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.vision.boxes import Box


def coco_classes(file: Path, root: Path) -> list[str]:
    """Return the names of the categories of a file, in the order of their ids.

    Raises:
        UserError: the file is not in the format of COCO.
    """
    return list(_categories(_read(file), file).values())


def coco_images(file: Path, root: Path, format: FormatConfig) -> list[LabelledImage]:
    """Return the images of a file with their boxes, in its order.

    Args:
        file: the JSON file.
        root: the directory of the data. Images are in its folder `images` if there is one, or else in it.
        format: `group` is the key of an image that names its client; null: the folder that `file_name` begins with.

    Raises:
        UserError: the file is not in the format of COCO.
    """
    content = _read(file)
    boxes, crowds = _boxes(content, file)
    folder = root / "images" if (root / "images").is_dir() else root
    images: list[LabelledImage] = []
    for number, image in enumerate(_list(content, "images", file), start=1):
        place = f"{file}, image {number}"
        name, key = _text(image, "file_name", place), _key(image, "id", place)
        group = top_folder(name) if format.group is None else str(_value(image, format.group, place))
        own = tuple(boxes.pop(key, ()))
        images.append(LabelledImage(place, name, folder, name, own, crowds.pop(key, 0), group))
    if unknown := [*boxes, *crowds]:
        raise UserError(
            f"{file}: an annotation has image_id {unknown[0]!r}, which no image has, or two images. Correct or remove "
            "it."
        )
    return images


def _boxes(content: Mapping[str, Any], file: Path) -> tuple[dict[int | str, list[Box]], dict[int | str, int]]:
    """Return the boxes of each image by its id, and the number of its regions of many objects."""
    names = _categories(content, file)
    boxes, crowds = defaultdict[int | str, list[Box]](list), defaultdict[int | str, int](int)
    for number, one in enumerate(_list(content, "annotations", file), start=1):
        place = f"{file}, annotation {number}"
        image, category = _key(one, "image_id", place), _key(one, "category_id", place)
        if category not in names:
            raise UserError(f"{place}: category_id {category!r} is in no category. Add the category, or correct it.")
        if one.get("iscrowd"):
            crowds[image] += 1
        else:
            left, top, width, height = _sides(one, place)
            boxes[image].append(Box(left, top, left + width, top + height, names[category]))
    return boxes, crowds


def _sides(annotation: Mapping[str, Any], place: str) -> list[float]:
    values = _value(annotation, "bbox", place)
    known = cast("list[Any]", values) if isinstance(values, list) else []
    numbers = [float(one) for one in known if isinstance(one, (int, float)) and not isinstance(one, bool)]
    if len(known) != 4 or len(numbers) != 4:
        raise UserError(f"{place}: bbox {shorten(values)} is no box. Write [left, top, width, height], in pixels.")
    return numbers


def _categories(content: Mapping[str, Any], file: Path) -> dict[int | str, str]:
    found: dict[int | str, str] = {}
    for number, one in enumerate(_list(content, "categories", file), start=1):
        place = f"{file}, category {number}"
        found[_key(one, "id", place)] = _text(one, "name", place)
    return dict(sorted(found.items(), key=lambda pair: (isinstance(pair[0], str), pair[0])))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file. Check task.path.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error}). Give annotations in the format of COCO.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: {shorten(content)} is no object. Give annotations in the format of COCO.")
    return cast("dict[str, Any]", content)


def _list(content: Mapping[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    values = content.get(key)
    known = cast("list[Any]", values) if isinstance(values, list) else None
    if known is None or not all(isinstance(one, dict) for one in known):
        raise UserError(f"{file}: {key} is {shorten(values)}. The format of COCO needs a list of objects there.")
    return known


def _value(row: Mapping[str, Any], key: str, place: str) -> Any:
    if row.get(key) is None:
        raise UserError(f"{place}: {shorten(dict(row))} has no {key}. Add it.")
    return row[key]


def _text(row: Mapping[str, Any], key: str, place: str) -> str:
    value = _value(row, key, place)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: {key} is {shorten(value)}. Write a text.")
    return value.strip()


def _key(row: Mapping[str, Any], key: str, place: str) -> int | str:
    value = _value(row, key, place)
    if not isinstance(value, (int, str)):
        raise UserError(f"{place}: {key} is {shorten(value)}. Write a whole number.")
    return value
