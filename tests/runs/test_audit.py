"""The SLM of a finished run judges a client's labels; classes that lie in folders are audited without a table."""

import json

import numpy as np
import pytest
from PIL import Image

import fedcollm
from fedcollm.config.baselines import changed
from fedcollm.errors import UserError
from fedcollm.runs.audit import Options, audit


def test_labels_judged_by_the_slm_of_a_run(tiny_config, word_data, tmp_path):
    fedcollm.run(changed(tiny_config, {"federation.rounds": 1}), tmp_path / "run")
    found = audit(word_data, Options(run=tmp_path / "run", finders=("labels",)))
    assert (len(found.subject.records), tuple(found.subject.classes)) == (288, ("colour", "animal"))
    np.testing.assert_allclose(found.subject.probabilities.sum(1), 1, atol=1e-5)
    assert found.labels == {"colour": 144, "animal": 144}
    assert {one.kind for one in found.findings} <= {"label"}
    odd = tmp_path / "odd.jsonl"
    odd.write_text(json.dumps({"text": "the red", "kind": "plant", "site": "0"}) + "\n")
    with pytest.raises(UserError, match="'plant' is none of the classes"):
        audit(odd, Options(run=tmp_path / "run", finders=("labels",)))


def test_only_the_training_part_is_looked_at(tmp_path):
    rows = "note,kind\n" + "".join(f"pain in part {i},{'ab'[i % 2]}\n" for i in range(8))
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text(rows)
    found = audit(tmp_path, Options(finders=("duplicates",)))
    assert (len(found.subject.records), found.counts) == (8, {})
    assert "only the training data is looked at, not test" in found.notes


def test_class_folders_and_what_is_not_looked_for(tmp_path):
    for i, kind in enumerate("aab"):
        (tmp_path / "train" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * i, 90, 200)).save(tmp_path / "train" / kind / f"{i}.png")
    (tmp_path / "train" / "b" / "broken.png").write_bytes(b"")
    found = audit(tmp_path)
    assert (found.labels, found.counts) == ({"a": 2, "b": 2}, {"unreadable": 1, "dark": 1, "plain": 3})
    assert (found.lengths, found.notes) == ({}, ["images in class folders"])
    assert [one.detail for one in found.findings if one.kind in ("dark", "plain")][
        -1
    ] == "0.0 bits of information per pixel"
    with pytest.raises(UserError, match="no such file"):
        audit(tmp_path / "none")
    with pytest.raises(
        UserError, match=r"train has images in folders, and no folder train\. Move .* into .*train/train"
    ):
        audit(tmp_path / "train")


def test_folders_of_recordings_are_no_broken_images(tmp_path):
    (tmp_path / "train" / "yes").mkdir(parents=True)
    (tmp_path / "train" / "yes" / "1.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"no images .*its 1 files are like train/yes/1\.wav\. .* table with a column"):
        audit(tmp_path)
