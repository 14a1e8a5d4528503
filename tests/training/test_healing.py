"""Healing: what is trained, what it reaches, and that it continues bit for bit."""

import copy
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import WORDS, tiny_llama
from torch import nn

from fedcollm.config import HealingConfig
from fedcollm.errors import NonFiniteError
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.task import TextTask
from fedcollm.models.pruning import prune_layers
from fedcollm.training import healing
from fedcollm.training.healing import Checkpoint, heal, measure, text_batches

PIECES = [
    TextExample(str(i), WORDS[2 + i % 14], (" ".join(WORDS[2 + (i * k) % 14] for k in range(2, 4 + i % 3)),), 0, ("",))
    for i in range(48)
]
SETTINGS = HealingConfig(batch_size=8, learning_rate=1e-2, epochs=3)


@pytest.fixture
def task(tokenizer) -> TextTask:
    return TextTask("text", tokenizer, 16, 32)


@pytest.fixture
def teacher() -> nn.Module:
    return tiny_llama(4)


@pytest.fixture
def student(teacher) -> nn.Module:
    return prune_layers(copy.deepcopy(teacher), [0, 3])


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def test_healing_brings_the_student_nearer_to_its_teacher(task, student, teacher):
    held = text_batches(task, PIECES[:16], 8)
    before = measure(task, student, teacher, held)
    heal(task, student, teacher, PIECES[16:], SETTINGS)
    after = measure(task, student, teacher, held)
    assert after.kl < 0.5 * before.kl
    assert not student.training


def test_embedding_and_teacher_stay_as_they_are(task, student, teacher):
    embedding, whole = student.get_input_embeddings().weight.clone(), weights(teacher)
    layer = student.model.layers[0].mlp.up_proj.weight.clone()
    heal(task, student, teacher, PIECES, SETTINGS)
    assert torch.equal(student.get_input_embeddings().weight, embedding)
    assert same(whole, weights(teacher))
    assert not torch.equal(student.model.layers[0].mlp.up_proj.weight, layer)


def test_next_token_is_the_cross_entropy_of_the_text_and_needs_no_teacher(task, student, teacher):
    other = copy.deepcopy(student)
    settings = SETTINGS.model_copy(update={"objective": "next_token"})
    held = text_batches(task, PIECES, 8)
    before = measure(task, student, None, held).perplexity
    heal(task, student, teacher, PIECES, settings)
    heal(task, other, tiny_llama(4, seed=7), PIECES, settings)
    assert same(weights(student), weights(other))
    assert measure(task, student, None, held).perplexity < before


def test_two_healings_are_equal_bit_for_bit(task, student, teacher):
    other = copy.deepcopy(student)
    heal(task, student, teacher, PIECES, SETTINGS)
    heal(task, other, teacher, PIECES, SETTINGS)
    assert same(weights(student), weights(other))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_interrupted_healing_continues_bit_for_bit(task, student, teacher, tmp_path, monkeypatch, dropout):
    for layer in student.model.layers:
        layer.self_attn.attention_dropout = dropout
    interrupted, resumed = copy.deepcopy(student), copy.deepcopy(student)
    heal(task, student, teacher, PIECES, SETTINGS)  # 18 steps
    checkpoint, real, calls = Checkpoint(tmp_path / "state", every=5), healing._accumulate, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 13:  # two steps after the second checkpoint
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(healing, "_accumulate", failing)
    with pytest.raises(KeyboardInterrupt):
        heal(task, interrupted, teacher, PIECES, SETTINGS, checkpoint)
    heal(task, resumed, teacher, PIECES, SETTINGS, checkpoint)
    assert len(calls) == 13 + 8
    assert same(weights(student), weights(resumed))


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity(task):
    uniform = tiny_llama(1)
    uniform.get_input_embeddings().weight.data.zero_()  # tied: all 16 logits are 0
    fit = measure(task, uniform, uniform, text_batches(task, PIECES, 8))
    assert fit.perplexity == pytest.approx(16.0)
    assert fit.kl == 0.0


def test_kl_of_held_out_text_is_a_mean_over_tokens(task, student, teacher):
    one, two = PIECES[0], PIECES[1]
    parts = [measure(task, student, teacher, text_batches(task, [piece], 1)) for piece in (one, two)]
    rows = [task.labelled(task.collate([piece])) for piece in (one, two)]
    whole = measure(task, student, teacher, text_batches(task, [one, two], 2))
    assert rows == [2, 3]
    assert whole.kl == pytest.approx((2 * parts[0].kl + 3 * parts[1].kl) / 5, rel=1e-5)
    nats = (2 * math.log(parts[0].perplexity) + 3 * math.log(parts[1].perplexity)) / 5
    assert math.log(whole.perplexity) == pytest.approx(nats, rel=1e-5)


def test_a_loss_that_is_not_finite_ends_the_healing(task, student, teacher):
    student.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="healing"):
        heal(task, student, teacher, PIECES, SETTINGS)


def test_a_narrower_teacher_makes_the_student_multiply_in_its_dtype(task, student, teacher):
    heal(task, student, teacher.to(torch.bfloat16), PIECES, SETTINGS)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert measure(task, student, teacher, text_batches(task, PIECES, 8)).kl < 1.0


def cut_off(file) -> None:
    file.write_bytes(file.read_bytes()[:200])


def of_another_model(file) -> None:
    save_file({"weights/other": torch.zeros(1)}, file)


def without_moments(file) -> None:
    save_file({name: tensor for name, tensor in load_file(file).items() if "exp_avg_sq" not in name}, file)


def of_other_shapes(file) -> None:
    tensors = load_file(file)
    save_file(tensors | {name: torch.zeros(3) for name in tensors if name.startswith("weights/")}, file)


@pytest.mark.parametrize(
    "spoil", [cut_off, lambda file: file.write_bytes(b""), of_another_model, without_moments, of_other_shapes]
)
def test_a_damaged_checkpoint_counts_as_absent_and_is_replaced(task, student, teacher, tmp_path, spoil):
    checkpoint, other = Checkpoint(tmp_path / "state", every=5), copy.deepcopy(student)
    heal(task, copy.deepcopy(student), teacher, PIECES, SETTINGS, checkpoint)
    whole = checkpoint.file.read_bytes()
    spoil(checkpoint.file)
    heal(task, student, teacher, PIECES, SETTINGS, checkpoint)
    heal(task, other, teacher, PIECES, SETTINGS)
    assert same(weights(student), weights(other))
    assert checkpoint.file.read_bytes() == whole
