"""What a configuration would cost, worked by hand on examples of a few bytes."""

from types import SimpleNamespace

import pytest
from torch import nn

from fedcollm.config.baselines import changed
from fedcollm.config.loading import load_config
from fedcollm.data.pool import Pool, Split
from fedcollm.errors import UserError
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.models import TextModels
from fedcollm.modalities.vision.models import ImageModels
from fedcollm.runs.batch_memory import activation_bytes
from fedcollm.runs.build import build_federation
from fedcollm.runs.estimate import check
from fedcollm.runs.shrink import with_shrunk_models

CONFIG = load_config(
    "icd10", **{"client.batch_size": 1, "server.batch_size": 1, "evaluation.batch_size": 1, "federation.rounds": 1}
)
SLM = SimpleNamespace(hidden_size=2, num_hidden_layers=3, vocab_size=10)
LLM = SimpleNamespace(hidden_size=4, num_hidden_layers=5, vocab_size=10)
LONG = TextExample("long", "8 bytes.", ("ab", "5byte"), 0, ("A", "B"))  # 2 tokens; 1 and 2: at most 4, with both 5
SHORT = TextExample("short", "red", ("a",), 0, ("A",))  # 1 and 1
PARTS = Split([SHORT], {"0": [SHORT, LONG]}, [LONG, SHORT])


def test_distillation_keeps_both_models_activations():
    # SLM: 2 tokens x 3 layers x 2 x 30 values x 2 bytes + 1 row x 10 x 4 bytes x 4.5 copies = 720 + 180
    # LLM: 2 x 5 x 4 x 30 x 4 bytes + 180 = 4980; scoring: 60 x 5 tokens x 4 x 4 bytes = 4800
    assert (
        activation_bytes(CONFIG, TextModels(), {"slm": SLM, "llm": LLM}, {"slm": 2, "llm": 4}, PARTS)
        == 900 + 4980 + 4800
    )


def test_a_clients_largest_batch_counts_where_there_is_no_llm():
    # 4 tokens x 3 x 2 x 30 x 2 bytes + 2 rows x 180; scoring: 60 x 5 x 2 x 2 bytes
    assert activation_bytes(CONFIG, TextModels(), {"slm": SLM}, {"slm": 2}, PARTS) == 1440 + 360 + 1200


def test_a_batch_is_the_largest_examples():
    two = changed(CONFIG, {"client.batch_size": 2})  # LONG and SHORT: 6 tokens, 3 rows
    assert activation_bytes(two, TextModels(), {"slm": SLM}, {"slm": 2}, PARTS) == 2160 + 540 + 1200


def test_data_that_is_not_here_counts_as_short_prompts():
    # 64 tokens x 3 x 2 x 30 x 2 bytes + 4 rows x 180; scoring: 60 x 64 x 2 x 2 bytes
    assert activation_bytes(CONFIG, TextModels(), {"slm": SLM}, {"slm": 2}, None) == 23040 + 720 + 15360


def test_a_prompt_is_no_longer_than_the_context():
    cut = SimpleNamespace(hidden_size=2, num_hidden_layers=3, vocab_size=10, max_position_embeddings=1)
    assert activation_bytes(CONFIG, TextModels(), {"slm": cut}, {"slm": 2}, PARTS) == 1080 + 360 + 960


def test_an_image_is_its_patches():
    shape = SimpleNamespace(hidden_size=2, num_hidden_layers=3, num_labels=10, image_size=8, patch_size=4)
    image = Split([], {"0": [object()]}, [object()])  # 4 patches and the class token
    assert activation_bytes(CONFIG, ImageModels(), {"slm": shape}, {"slm": 4}, image) == 3600 + 180 + 2400


OWN_SIZES = {
    **{f"{role}.adapter.targets": ["first"] for role in ("slm", "llm")},
    **{f"task.{key}": 2 for key in ("clients", "private_size", "public_size", "test_size")},
    "slm.dtype": "float32",
}
SIMULATED = {
    "federation.secure_aggregation.simulate_quantization": True,
    "federation.secure_aggregation.max_weight": 2,
}


def own_pool() -> Pool:
    return Pool([TextExample(str(i), str(i), ("a", "b"), i % 2, ("a", "b")) for i in range(8)])


@pytest.mark.parametrize("key", ["server", "evaluation"])
def test_check_says_that_larger_batches_take_more(tiny_config, key):
    small, large = (changed(tiny_config, {f"{key}.batch_size": size}) for size in (1, 8))
    assert check(small).memory_bytes < check(large).memory_bytes


@pytest.mark.parametrize(
    ("changes", "up", "down"),
    [
        # 80 values: 9 words of 9 and two scales; 8 words of 11, two scales and the name of what they differ from
        ({"federation.upload": "int4", "federation.download": "int3"}, 4 * 11, 4 * 10 + 32),
        # sums of 2 clients, up to 84⁵ < 2³²: 5 values in a word, and 8 statistics of 4 words each
        ({"federation.secure_aggregation.bits": 6, **SIMULATED}, 4 * (16 + 32), 320),
        ({**SIMULATED, "federation.download": "bfloat16"}, 4 * (80 + 32), 160),
    ],
)
def test_check_says_what_travels_in_each_direction(tiny_config, changes, up, down):
    cost = check(changed(tiny_config, OWN_SIZES | changes), OwnModality(), own_pool()).roles["slm"]
    assert (cost.upload_bytes, cost.adapter_bytes) == (up, down)


class Halves(nn.Module):
    """A network of one's own, without a configuration of transformers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)


class OwnModality(Modality):
    """Enough of one for an estimate."""

    name = "own"

    def load_model(self, section, role, device, seed):
        return Halves().to(device)

    collate = logits = score = None


def test_own_modality_is_estimated_by_its_outline_and_its_examples(tiny_config):
    cost = check(changed(tiny_config, OWN_SIZES), OwnModality(), own_pool())
    assert (cost.roles["slm"].base_parameters, cost.roles["slm"].adapter_parameters) == (44, 8 * (4 + 6))
    assert cost.roles["slm"].base_bytes == 176
    assert cost.data["test"] == 2


def test_check_of_a_deployments_server_needs_no_training_data(tiny_config):
    sizes = {"task.public_size": 2, "task.test_size": 2}
    public, test = ([TextExample(f"{part}{i}", f"{part}{i}", ("a", "b"), 0, ("a", "b")) for i in "12"] for part in "pt")
    cost = check(changed(tiny_config, sizes), pool=Pool([], test=test, public=public))
    assert cost.data is not None
    assert (cost.data["clients"], cost.data["test"]) == ({}, 2)
    assert cost.data["notes"][-1].startswith("there is no training data")


# --- healed bases ---


@pytest.fixture
def healed(tiny_config, model_directories, healing_text, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))
    heal = {"text": str(healing_text), "size": 96, "batch_size": 16}
    return changed(tiny_config, {"slm.source": model_directories["llm"], "slm.layers": 2, "slm.heal": heal})


def test_check_says_whether_the_healed_base_is_in_the_cache(healed, tiny_config):
    assert check(healed).healed == {"slm": False}
    with_shrunk_models(healed)
    assert check(healed).healed == {"slm": True}
    assert check(tiny_config).healed == {}


@pytest.mark.parametrize(
    "change", [{"text": "/no/such.txt"}, {"size": 121}, {"text": "/no/such"}, {"text": "no/such"}], ids=str
)
def test_check_refuses_a_healing_text_as_a_run_does(healed, change, tmp_path):
    config = changed(healed, {f"slm.heal.{key}": value for key, value in change.items()})
    with pytest.raises(UserError, match=r"^slm\.heal\.text") as checked:
        check(config)
    with pytest.raises(UserError) as ran:
        build_federation(config, tmp_path)
    assert str(checked.value) == str(ran.value)
