"""Detection in the photographs of BCCD: red cells, white cells and platelets of blood smears, in boxes.

    python -m benchmarks.blood_boxes DATA OUT
    fedcollm compare OUT/blood_boxes.yaml --methods METHODS

DATA is a folder with `images.zip` and, in COCO's format, `train.json`, `val.json` and `test.json`. Writes OUT/data in
the layout of `task.format.boxes: coco`, where `val.json` becomes `public.json`, and OUT/blood_boxes.yaml. No pretrained
detector comes with a package, so both models are the small ones of the task `shapes`, which see 64 x 64 pixels and have
16 queries. Each method pretrains them in the same way on the public part.
"""

import json
import shutil
import sys
import zipfile
from pathlib import Path

#: Name of a part of the data to the name that it has here.
PARTS = {"train": "train", "val": "public", "test": "test"}

CONFIGURATION = """\
name: blood_boxes
task: {{name: custom, path: {path}, format: {{boxes: coco}}, clients: 4, partition: {{kind: iid}}, private_size: 50,
  public_size: 87, test_size: 72}}
llm: {{source: cells-shapes-large, dtype: float32, pretrain_epochs: 120, adapter: {{rank: 8}}}}
slm: {{source: cells-shapes-small, layers: null, heal: null, dtype: float32, pretrain_epochs: 60, adapter: {{rank: 8}}}}
client: {{batch_size: 8, learning_rate: 3.0e-3, epochs: 4, max_grad_norm: null}}
server: {{batch_size: 8, learning_rate: 3.0e-3, epochs: 4, schedule: linear, warmup_ratio: 0.1, max_grad_norm: 1.0,
  unlabelled_per_round: null}}
federation: {{rounds: 3}}
"""


def main(data: Path, out: Path) -> None:
    """Write the photographs, the boxes and the configuration."""
    images = out / "data" / "images"
    images.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(data / "images.zip") as archive:
        for name in archive.namelist():
            if name.lower().endswith(".jpg"):
                (images / Path(name).name).write_bytes(archive.read(name))
    for part, here in PARTS.items():
        shutil.copy(data / f"{part}.json", out / "data" / f"{here}.json")
    text = CONFIGURATION.format(path=json.dumps(str((out / "data").resolve())))
    (out / "blood_boxes.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
