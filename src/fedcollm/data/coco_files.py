"""Read annotations in the JSON format of COCO (Lin et al., arXiv 1405.0312): `images`, `annotations`, `categories`.

A box, `bbox`, is left, top, width and height in pixels. Segmentations are ignored. A region of many objects (`iscrowd`)
is left out, and counted. `width` and `height` of an image may be left out.

Ids of images and of categories are whole numbers or texts, and no two are equal.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, TypeGuard, cast

from fedcollm.config import FormatConfig
from fedcollm.data.cells import composed
from fedcollm.data.labelled_images import LabelledImage, top_folder
from fedcollm.data.media_files import folder_inside
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
    rows = _by_id(content, "images", "image", file)
    boxes, crowds = _boxes(content, set(rows), file)
    folder = folder_inside(root, "images", "images") if (root / "images").is_dir() else root
    images: list[LabelledImage] = []
    for key, (place, image) in rows.items():
        name = _text(image, "file_name", place)
        group = top_folder(name) if format.group is None else _group(image, format.group, place)
        size = tuple(_side(image, side, place) for side in ("width", "height"))
        images.append(LabelledImage(place, name, folder, name, tuple(boxes[key]), crowds[key], group, size))
    return images


def _boxes(
    content: Mapping[str, Any], images: Set[int | str], file: Path
) -> tuple[Mapping[int | str, list[Box]], Mapping[int | str, int]]:
    """Return the boxes of each image by its id, and the number of its regions of many objects."""
    names = _categories(content, file)
    boxes, crowds = defaultdict[int | str, list[Box]](list), defaultdict[int | str, int](int)
    for number, one in enumerate(_list(content, "annotations", file), start=1):
        place = f"{file}, annotation {number}"
        image, category = _key(one, "image_id", place), _key(one, "category_id", place)
        if category not in names:
            raise UserError(
                f"{place}: category_id {shorten(category)} is in no category. Add the category, or correct it."
            )
        if image not in images:
            raise UserError(f"{place}: image_id {shorten(image)} is the id of no image. Correct or remove it.")
        if _is_crowd(one, place):
            crowds[image] += 1
        else:
            left, top, width, height = _sides(one, place)
            boxes[image].append(Box(left, top, left + width, top + height, names[category]))
    return boxes, crowds


def _sides(annotation: Mapping[str, Any], place: str) -> list[float]:
    values = _value(annotation, "bbox", place)
    known = cast("list[Any]", values) if isinstance(values, list) else []
    try:
        numbers = [float(one) for one in known if _is_number(one)]
    except OverflowError:  # a whole number can be larger than any float
        numbers = []
    if len(known) != 4 or len(numbers) != 4:
        raise UserError(f"{place}: bbox {shorten(values)} is no box. Write [left, top, width, height], in pixels.")
    return numbers


def _is_crowd(annotation: Mapping[str, Any], place: str) -> bool:
    value = annotation.get("iscrowd", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value not in (0, 1):
        raise UserError(
            f"{place}: iscrowd is {shorten(value)}. Write 1 if the annotation is a region of many objects, or else 0."
        )
    return value == 1


def _side(image: Mapping[str, Any], key: str, place: str) -> int | None:
    """Return the width or the height that an image has according to the file, in pixels; None if it does not say."""
    value = image.get(key)
    if value is None:
        return None
    if not _is_number(value) or not math.isfinite(value) or value != int(value):
        raise UserError(f"{place}: {key} is {shorten(value)}. Write a whole number of pixels, or leave it out.")
    return int(value)


def _group(image: Mapping[str, Any], key: str, place: str) -> str:
    value = _value(image, key, place)
    group = value.strip() if isinstance(value, str) else str(value) if _is_number(value) else ""
    if not group or group in ("nan", "inf", "-inf"):
        raise UserError(
            f"{place}: {key} (task.format.group) is {shorten(value)}. Write the client that the image belongs to, a "
            "text or a number."
        )
    return group


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _categories(content: Mapping[str, Any], file: Path) -> dict[int | str, str]:
    found = {
        key: composed(_text(one, "name", place))
        for key, (place, one) in _by_id(content, "categories", "category", file).items()
    }
    return dict(sorted(found.items(), key=lambda pair: (isinstance(pair[0], str), pair[0])))


def _by_id(
    content: Mapping[str, Any], key: str, what: str, file: Path
) -> dict[int | str, tuple[str, Mapping[str, Any]]]:
    """Return the place, for messages, and the values of each object of a list by its id.

    Raises:
        UserError: an id is missing, has a wrong type, or is there twice.
    """
    found: dict[int | str, tuple[str, Mapping[str, Any]]] = {}
    for number, one in enumerate(_list(content, key, file), start=1):
        place = f"{file}, {what} {number}"
        own = _key(one, "id", place)
        if own in found:
            raise UserError(f"{place}: id {shorten(own)} is already that of {found[own][0]}. Give each its own id.")
        found[own] = place, one
    return found


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
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise UserError(f"{place}: {key} is {shorten(value)}. Write a whole number.")
    return value
