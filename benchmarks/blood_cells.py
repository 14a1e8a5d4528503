"""A task of laboratories made of BCCD: a crop of a blood smear shows a red cell, a white cell or platelets.

    python -m benchmarks.blood_cells DATA OUT
    fedcollm compare OUT/blood_cells.yaml --methods METHODS --seeds 0,1,2

DATA is a folder with `images.zip` and, in COCO's format, `train.json`, `val.json` and `test.json`. Writes OUT/cells,
with class folders for each part, OUT/models with two classifiers, and OUT/blood_cells.yaml. The photographs of
`train` become private data, those of `val` public data and those of `test` test data, so that no photograph is in two
parts. There are eleven times as many red cells as others: of each part and class, at most `MOST` crops are kept, drawn
with a fixed seed. Boxes without an area are skipped, and counted.

The classifiers are vision transformers with random weights, since none with pretrained ones is at hand. Each method
pretrains them in the same way on the labelled public part.
"""

import io
import json
import random
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

#: Name of a part of the data to the folder that its crops go to.
PARTS: Mapping[str, str] = {"train": "train", "val": "public", "test": "test"}

#: Largest number of crops of a class, by part.
MOST: Mapping[str, int] = {"train": 200, "val": 80, "test": 69}

#: Role to the shape of its vision transformer.
SHAPES: Mapping[str, Mapping[str, int]] = {
    "slm": {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96},
    "llm": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384},
}

#: Side of the images that the models read, and of their patches, in pixels.
SIDE, PATCH = 32, 8

CONFIGURATION = """\
name: blood_cells
task:
  name: custom
  path: {path}
  clients: 4
  private_size: 120
  public_size: 90
  unlabelled_size: 150
  test_size: 207
  partition: {{kind: dirichlet, alpha: 0.3}}
  format: {{image: null}}
llm: {{source: {llm}, pretrain_epochs: 40, adapter: {{rank: 8}}}}
slm: {{source: {slm}, layers: null, heal: null, pretrain_epochs: 40, adapter: {{rank: 8}}}}
client: {{batch_size: 16, learning_rate: 3.0e-3, max_grad_norm: 1.0}}
server: {{batch_size: 16, learning_rate: 3.0e-3, max_grad_norm: 1.0, unlabelled_per_round: null}}
federation: {{rounds: 5}}
evaluation: {{clients: last, batch_size: 64}}
"""


def boxes(coco: Mapping[str, Any]) -> tuple[list[tuple[str, str, tuple[float, ...]]], int]:
    """Return photograph, class and box (x, y, width, height) of every cell, and the number of boxes without an area."""
    photos = {photo["id"]: photo["file_name"] for photo in coco["images"]}
    kinds = {kind["id"]: kind["name"] for kind in coco["categories"]}
    every = [(photos[a["image_id"]], kinds[a["category_id"]], tuple(a["bbox"])) for a in coco["annotations"]]
    kept = [one for one in every if one[2][2] > 0 and one[2][3] > 0]
    return kept, len(every) - len(kept)


def balanced(
    cells: list[tuple[str, str, tuple[float, ...]]], most: int, seed: int = 0
) -> list[tuple[str, str, tuple[float, ...]]]:
    """Return at most `most` cells of each class, drawn at random."""
    shuffled, count, kept = list(cells), Counter[str](), list[tuple[str, str, tuple[float, ...]]]()
    random.Random(seed).shuffle(shuffled)
    for cell in shuffled:
        count[cell[1]] += 1
        kept += [cell] if count[cell[1]] <= most else []
    return kept


def write_crops(data: Path, out: Path) -> None:
    """Write the crops of all parts into class folders."""
    with zipfile.ZipFile(data / "images.zip") as archive:
        for part, folder in PARTS.items():
            cells, empty = boxes(json.loads((data / f"{part}.json").read_text(encoding="utf-8")))
            for number, (name, kind, (x, y, width, height)) in enumerate(balanced(cells, MOST[part])):
                place = out / folder / kind / f"{Path(name).stem}-{number}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                with Image.open(io.BytesIO(archive.read(name))) as photo:
                    edges = (max(x, 0), max(y, 0), min(x + width, photo.width), min(y + height, photo.height))
                    photo.convert("RGB").crop(tuple(map(round, edges))).save(place)
            kept = {kind.name: len(list(kind.iterdir())) for kind in sorted((out / folder).iterdir())}
            print(f"{folder}: {kept} of {len(cells)} cells; {empty} boxes without an area are skipped")


def write_model(shape: Mapping[str, int], place: Path, seed: int) -> None:
    """Write a vision transformer with random weights, and how its images are prepared."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    network: Any = ViTForImageClassification(ViTConfig(image_size=SIDE, patch_size=PATCH, num_labels=3, **shape))
    network.save_pretrained(place)
    prepared = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": SIDE, "width": SIDE},
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
        **{key: [0.5, 0.5, 0.5] for key in ("image_mean", "image_std")},
        "resample": 2,
        "rescale_factor": 1 / 255,
    }
    (place / "preprocessor_config.json").write_text(json.dumps(prepared), encoding="utf-8")


def main(data: Path, out: Path) -> None:
    """Write the crops, the models and the configuration."""
    write_crops(data, out / "cells")
    for seed, (role, shape) in enumerate(SHAPES.items()):
        write_model(shape, out / "models" / role, seed)
    places = {"path": out / "cells", **{role: out / "models" / role for role in SHAPES}}
    text = CONFIGURATION.format(**{name: json.dumps(str(place.resolve())) for name, place in places.items()})
    (out / "blood_cells.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
