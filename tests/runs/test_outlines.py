"""Outlines of tiny models, counted by hand, and what the cache keeps of them."""

from pathlib import Path

import pytest
import torch

from fedcollm.config import AdapterConfig, ModelConfig
from fedcollm.errors import UserError
from fedcollm.modalities.text.models import TextModels
from fedcollm.modalities.vision.models import ImageModels
from fedcollm.runs import outlines
from fedcollm.runs.outlines import Outline, outline

QUERIES = AdapterConfig(rank=2, targets=["q_proj"])


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made_once(section: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> Outline:
    """The outline from the cache, which `section` must have been put into."""
    with monkeypatch.context() as patch:
        patch.setattr(outlines, "network_outline", None)
        return outline(section, TextModels())


def test_an_outline_from_the_cache_equals_the_first_one(
    model_directories: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    section = ModelConfig(source=model_directories["slm"], adapter=QUERIES)
    first, again = outline(section, TextModels()), made_once(section, monkeypatch)
    shapes = {name.split(".layers.")[1]: tuple(tensor.shape) for name, tensor in again.adapter.items()}
    a, b = "self_attn.q_proj.lora_A.weight", "self_attn.q_proj.lora_B.weight"  # 2 layers of width 16, rank 2
    assert shapes == {f"{layer}.{name}": shape for layer in (0, 1) for name, shape in ((a, (2, 16)), (b, (16, 2)))}
    assert list(again.adapter) == list(first.adapter)
    assert {tensor.dtype for tensor in again.adapter.values()} == {torch.float32}
    assert (again.frozen, again.shape) == (first.frozen, first.shape)
    assert (again.shape.hidden_size, again.shape.num_hidden_layers) == (16, 2)


def test_another_section_or_another_model_has_an_outline_of_its_own(
    model_directories: dict[str, str], cache: Path
) -> None:
    slm = ModelConfig(source=model_directories["slm"], adapter=QUERIES)
    sections = [slm, slm.model_copy(update={"layers": 1}), ModelConfig(source=model_directories["llm"])]
    assert len({outline(section, TextModels()).frozen for section in sections}) == 3
    assert len(list(cache.iterdir())) == 3


def test_an_outline_is_made_again_where_the_model_changed(model_directories: dict[str, str], tmp_path: Path) -> None:
    config = (Path(model_directories["slm"]) / "config.json").read_text(encoding="utf-8")
    section = ModelConfig(source=str(tmp_path), adapter=QUERIES)
    counts: list[int] = []
    for text in (config, config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 1')):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        counts.append(outline(section, TextModels()).frozen)
    assert counts[0] > counts[1]


def test_what_is_refused_is_not_kept(model_directories: dict[str, str], cache: Path) -> None:
    section = ModelConfig(source=model_directories["slm"], layers=9)
    for _ in range(2):
        with pytest.raises(UserError, match="layers"):
            outline(section, TextModels())
    assert not cache.exists()


def test_image_models_are_outlined_each_time(cache: Path) -> None:
    assert outline(ModelConfig(source="vit-digits-small"), ImageModels()).shape.image_size == 8
    assert not cache.exists()
