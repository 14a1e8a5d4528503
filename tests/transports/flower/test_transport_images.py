"""Federations of tiny image classifiers: over a network in memory and in one process, bit for bit, plain and secure."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.modalities.vision.tiny_classifiers import TINY, save_classifier
from tests.transports.small_federation import Small, identical, last

from fedcollm.config import RunConfig
from fedcollm.config.loading import load_config
from fedcollm.data.catalogue import build_client_modality, build_modality
from fedcollm.federation.client import Client
from fedcollm.runs.build_clients import ClientData, build_client
from fedcollm.runs.build_models import build_slm
from fedcollm.runs.runner import run
from fedcollm.seeding import RunIdentity


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Class folders of 60 images of noise, each brighter in one channel."""
    root, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / "train" / name).mkdir(parents=True)
        for number in range(20):
            values = generator.integers(0, 150, (12, 10, 3))
            values[..., channel] += 100
            Image.fromarray(values.astype(np.uint8)).save(root / "train" / name / f"{number}.png")
    return root


def config_of(slm: str, llm: str, photos: Path, **changes) -> RunConfig:
    """One round of three clients with 8 images each, and a step of distillation."""
    sizes = {"private_size": 8, "public_size": 8, "unlabelled_size": 4, "test_size": 12}
    model = {"dtype": "float32", "adapter": {"rank": 2}}
    values = {
        "name": "photos",
        "task": {"name": "custom", "path": str(photos), "format": {"image": None}, "clients": 3, **sizes},
        "llm": {"source": llm, **model},
        "slm": {"source": slm, "layers": None, "heal": None, **model},
        "client": {"learning_rate": 1e-2},
        "server": {"learning_rate": 1e-2, "unlabelled_per_round": None},
        "federation": {"rounds": 1},
    }
    return load_config("icd10", **values, **{"task.partition.kind": "iid", **changes})


class SmallOfImages(Small):
    """Its clients build their models themselves, with the facts of the server."""

    def client(self, name: str) -> Client:
        """A client as it is without a network."""
        config = self.config
        facts = build_modality(config.task, config.slm, config.llm, True).of("slm").facts()
        modality = build_client_modality(config.task, config.slm, facts)
        slm = build_slm(config, modality, [], self.disk / name)
        data = ClientData(modality, slm, self.parts[name], self._test, self.own(name))
        return build_client(config, RunIdentity("small-0123", config.seed), name, data, list(self.parts))


@pytest.mark.parametrize(
    ("name", "secure"), [*((name, False) for name in TINY), ("vit", True), ("resnet", True)]
)  # fmt: skip
def test_run_over_a_network_equals_the_one_in_this_process(name, secure, photos, tmp_path, monkeypatch):
    llm = save_classifier("vit", tmp_path / "llm", seed=1, image_mean=[0.4, 0.4, 0.4])
    slm = save_classifier(name, tmp_path / "slm", seed=2)
    config = config_of(slm, llm, photos, **{"federation.secure_aggregation.enabled": secure})
    small = SmallOfImages(config, tmp_path / "disk", monkeypatch)
    (record,) = small.run(tmp_path / "network")[-1:]
    run(config, tmp_path / "local")
    (here, theta), (there, other) = last(tmp_path / "network"), last(tmp_path / "local")
    assert identical(theta, other)
    assert here.scores == there.scores == record.scores
    assert any("classifier" in key and "lora" not in key for key in theta)
