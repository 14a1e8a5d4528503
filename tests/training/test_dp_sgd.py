"""DP-SGD: every example's own gradient is clipped, by autograd's own figures; randomness is nobody's to predict."""

import math
import sys

import numpy as np
import pytest
import torch
from tests.parties import add_adapter, fit_privately
from torch.nn import functional

from fedcollm.config import AdapterConfig
from fedcollm.errors import UserError
from fedcollm.modalities.classifiers import FreshHead
from fedcollm.modalities.text.task import TextExample, TextTask
from fedcollm.modalities.vision.task import ImageExample, ImageTask
from fedcollm.models import adapters
from fedcollm.models.adapters import read_adapter, write_adapter
from fedcollm.privacy.accounting import ExamplePrivacy
from fedcollm.privacy.keystream import SecureStream
from fedcollm.training import dp_sgd as module

KEY = bytes(range(32))
ANSWERS = ("animal", "good animal", "colour", "the bad colour")


def text_example(noun: str, prompt: str, answer: int) -> TextExample:
    """Answers of one to three tokens, prompts of different lengths: a batch has padding and several rows an example."""
    return TextExample(noun, prompt, ANSWERS, answer, ANSWERS)


EXAMPLES = [
    text_example("cat", "the cat is a :", 0),
    text_example("dog", "dog :", 1),
    text_example("red", "is the red good a :", 2),
    text_example("blue", "the blue :", 3),
]


@pytest.fixture
def task(tokenizer) -> TextTask:
    return TextTask("toy", tokenizer, 16, 32)


@pytest.fixture
def slm(llama):
    """LoRA whose B is not zero, so that all gradients are there."""
    model = add_adapter(llama, rank=2, seed=1)
    torch.manual_seed(5)
    write_adapter(model, {name: torch.randn_like(tensor) / 4 for name, tensor in read_adapter(model).items()})
    return model


def gradients(task, model, examples) -> dict[str, torch.Tensor]:
    """The plain gradient of the summed loss, by autograd."""
    batch = task.collate(examples)
    model.zero_grad()
    functional.cross_entropy(task.logits(model.train(), batch), task.targets(batch), reduction="sum").backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


def norm(gradient) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in gradient.values()))


def stepped(monkeypatch, task, model, examples, clip=1e4, noise=1e-12, rate=1.0, batch_size=16, stream=None):
    """The gradient that the optimizer takes its only step with."""
    seen = {}

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            seen.update({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})

    monkeypatch.setattr(module, "adamw", lambda m, _: Recorder([p for p in m.parameters() if p.requires_grad], 0.1))
    privacy = ExamplePrivacy(clip, noise, 1e-5, rate, steps=1)
    fit_privately(task, model, examples, privacy=privacy, batch_size=batch_size, learning_rate=0.1, stream=stream)
    return seen


def close(one, other) -> bool:
    """Up to float32's rounding: the norm of the difference is below 1e-5 of the norm."""
    return norm({name: one[name] - other[name] for name in other}) < 1e-5 * norm(other)


def image_model() -> tuple[ImageTask, torch.nn.Module, list[ImageExample]]:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    shape = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, num_labels=3, hidden_size=8, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    model = add_adapter(ViTForImageClassification(shape), rank=2, seed=1, causal_lm=False)
    write_adapter(model, {name: torch.randn_like(tensor) / 4 for name, tensor in read_adapter(model).items()})
    examples = [ImageExample(str(i), torch.rand(1, 8, 8), i % 3) for i in range(4)]
    return ImageTask("toy", "abc"), model, examples


# --- gradients ---


def test_fresh_head_has_per_example_gradients(monkeypatch):
    task, _, examples = image_model()
    from transformers import ViTConfig, ViTForImageClassification

    network = ViTForImageClassification(
        ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, hidden_size=8, num_hidden_layers=1,
                  num_attention_heads=2, intermediate_size=16)
    )  # fmt: skip
    network.classifier = FreshHead(8, 3)
    model = adapters.add_adapter(network, AdapterConfig(rank=2), causal_lm=False, whole=["classifier"])
    write_adapter(model, {name: torch.randn_like(tensor) / 4 for name, tensor in read_adapter(model).items()})
    alone = [gradients(task, model, [example]) for example in examples]
    norms = sorted(map(norm, alone))
    clip = (norms[1] + norms[2]) / 2
    expected = {name: sum(min(1.0, clip / norm(gradient)) * gradient[name] for gradient in alone) for name in alone[0]}
    assert "base_model.model.classifier.modules_to_save.default.weight" in expected
    assert close(stepped(monkeypatch, task, model, examples, clip=clip), expected)


def test_adapted_convolution_is_refused_by_name():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 3, 2)

    model = add_adapter(Network(), rank=1, causal_lm=False, targets=["conv"])
    with pytest.raises(UserError, match=r"conv\..* is a Conv2d.*slm\.adapter\.targets"):
        module._check_linear(model)


def test_without_a_bound_the_gradient_is_that_of_the_summed_loss(monkeypatch, task, slm):
    assert close(stepped(monkeypatch, task, slm, EXAMPLES), gradients(task, slm, EXAMPLES))


@pytest.mark.parametrize("modality", ["text", "images"])
def test_each_examples_gradient_is_clipped_by_itself(monkeypatch, task, slm, modality):
    task, model, examples = (task, slm, EXAMPLES) if modality == "text" else image_model()
    alone = [gradients(task, model, [example]) for example in examples]
    norms = sorted(map(norm, alone))
    clip = (norms[1] + norms[2]) / 2  # two are clipped, two are not
    factors = [min(1.0, clip / norm(gradient)) for gradient in alone]
    assert sorted(factor < 1 for factor in factors) == [False, False, True, True]
    expected = {
        name: sum(factor * gradient[name] for factor, gradient in zip(factors, alone, strict=True)) for name in alone[0]
    }
    assert close(stepped(monkeypatch, task, model, examples, clip=clip), expected)


@pytest.mark.parametrize("index", range(4))
def test_one_example_never_weighs_more_than_the_clip(monkeypatch, task, slm, index):
    alone = stepped(monkeypatch, task, slm, [EXAMPLES[index]], clip=0.01)
    assert 0.99999 * 0.01 <= norm(alone) <= 1.000001 * 0.01


def test_clipped_gradients_are_summed_in_full_precision_whatever_the_run_allows(monkeypatch, task, slm):
    seen = []
    monkeypatch.setattr(module, "_add_noise", lambda *a: seen.append(torch.get_float32_matmul_precision()))
    torch.set_float32_matmul_precision("medium")
    try:
        stepped(monkeypatch, task, slm, EXAMPLES)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"highest"}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_examples_in_memory_at_once_do_not_change_the_gradient(monkeypatch, task, slm, batch_size):
    whole = stepped(monkeypatch, task, slm, EXAMPLES, clip=0.5)
    assert close(stepped(monkeypatch, task, slm, EXAMPLES, clip=0.5, batch_size=batch_size), whole)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_example_whose_gradient_is_not_finite_counts_as_zero(monkeypatch, task, slm, value):
    expected = stepped(monkeypatch, task, slm, [e for e in EXAMPLES if e.id != "red"], clip=0.5)
    backward = module._backward

    def overflowing(modality, model, examples):
        backward(modality, model, examples)
        for number, example in enumerate(examples):
            if example.id == "red":
                next(p for p in model.parameters() if p.requires_grad).grad_sample[number].fill_(value)

    monkeypatch.setattr(module, "_backward", overflowing)
    assert close(stepped(monkeypatch, task, slm, EXAMPLES, clip=0.5), expected)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("where", ["collate", "logits", "backward"])
def test_example_that_cannot_be_trained_on_counts_as_zero_and_the_others_as_ever(
    monkeypatch, task, slm, where, batch_size
):
    expected = stepped(monkeypatch, task, slm, [e for e in EXAMPLES if e.id != "red"], clip=0.5)
    seen: list[list[str]] = [[]]

    class Broken(TextTask):
        def collate(self, examples):
            seen[0] = [example.id for example in examples]
            fail("collate")
            return super().collate(examples)

        def logits(self, model, batch):
            logits = super().logits(model, batch)  # opacus has noted the activations by now
            fail("logits")
            if where == "backward":
                logits.register_hook(lambda gradient: fail("backward"))
            return logits

    def fail(here):
        if here == where and "red" in seen[0]:
            raise MemoryError("the patient John Smith")

    broken = Broken("toy", task.tokenizer, 16, 32)
    assert close(stepped(monkeypatch, broken, slm, EXAMPLES, clip=0.5, batch_size=batch_size), expected)


def test_noise_is_added_though_no_example_can_be_trained_on(monkeypatch, task, slm):
    monkeypatch.setattr(module, "_backward", lambda t, m, e: 1 / 0)
    seen = stepped(monkeypatch, task, slm, EXAMPLES, clip=0.5, noise=3.0, stream=SecureStream(KEY))
    values = torch.cat([tensor.flatten() for tensor in seen.values()]).numpy()
    assert values.std() == pytest.approx(1.5, rel=4 / math.sqrt(2 * len(values)))


# --- noise and sampling ---


def test_noise_has_the_standard_deviation_of_clip_times_multiplier(monkeypatch, task, slm):
    seen = stepped(monkeypatch, task, slm, [], clip=0.5, noise=3.0, stream=SecureStream(KEY))  # an empty batch
    values = torch.cat([tensor.flatten() for tensor in seen.values()]).numpy()
    assert values.std() == pytest.approx(1.5, rel=4 / math.sqrt(2 * len(values)))
    assert abs(values.mean()) < 4 * 1.5 / math.sqrt(len(values))


def test_every_example_is_drawn_by_itself_at_the_sampling_rate(monkeypatch, task, slm):
    sizes = []
    monkeypatch.setattr(module, "_backward", lambda t, m, e: sizes.append(len(e)) or empty(m))

    def empty(model):
        for p in model.parameters():
            if p.requires_grad:
                p.grad_sample = p.new_zeros(0, *p.shape)

    privacy = ExamplePrivacy(1.0, 1.0, 1e-5, 0.25, steps=300)
    fit_privately(
        task, slm, EXAMPLES * 5, privacy=privacy, batch_size=100, learning_rate=1e-3, stream=SecureStream(KEY)
    )
    assert len(sizes) == 300
    assert np.mean(sizes) == pytest.approx(5.0, abs=4 * math.sqrt(3.75 / 300))  # 20 · 0.25, variance 20 · 0.25 · 0.75
    assert np.var(sizes) == pytest.approx(3.75, rel=0.35)


def test_step_without_any_example_is_a_step_all_the_same(task, slm):
    before = read_adapter(slm)
    privacy = ExamplePrivacy(1.0, 1.0, 1e-5, 1e-9, steps=3)
    fit_privately(task, slm, EXAMPLES, privacy=privacy, batch_size=4, learning_rate=1e-3)
    after = read_adapter(slm)
    assert all(not torch.equal(before[name], after[name]) and after[name].isfinite().all() for name in before)


def test_two_runs_differ_whatever_torch_is_seeded_with(task, slm):
    start, ends = read_adapter(slm), []
    for _ in range(2):
        torch.manual_seed(0)
        write_adapter(slm, start)
        privacy = ExamplePrivacy(1.0, 1.0, 1e-5, 1.0, steps=1)
        fit_privately(task, slm, EXAMPLES, privacy=privacy, batch_size=4, learning_rate=1e-3)
        ends.append(read_adapter(slm))
    assert not any(torch.equal(ends[0][name], ends[1][name]) for name in start)


# --- the model afterwards ---


def test_tuned_model_learns_generates_and_keeps_nothing_of_opacus(task, slm, tokenizer):
    privacy = ExamplePrivacy(1.0, 0.3, 1e-5, 0.5, steps=60)
    examples = [e for e in EXAMPLES if len(ANSWERS[e.answer].split()) == 1] * 20
    loss_before = mean_loss(task, slm, examples)
    fit_privately(task, slm, examples, privacy=privacy, batch_size=16, learning_rate=1e-2)
    assert mean_loss(task, slm, examples) < loss_before / 2
    prompt = tokenizer("the cat is a :", return_tensors="pt", return_token_type_ids=False)
    generated = slm.generate(**prompt, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert generated.shape == (1, 7)
    assert not slm.training
    assert not any(hasattr(p, "grad_sample") or hasattr(p, "summed_grad") for p in slm.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in slm.modules())


def mean_loss(task, model, examples) -> float:
    batch = task.collate(examples)
    with torch.no_grad():
        return float(functional.cross_entropy(task.logits(model, batch), task.targets(batch)))


def test_frozen_a_is_tuned_in_b_alone(task, llama):
    model = add_adapter(llama, rank=2, seed=1, freeze_a=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    privacy = ExamplePrivacy(1.0, 1.0, 1e-5, 1.0, steps=2)
    fit_privately(task, model, EXAMPLES, privacy=privacy, batch_size=4, learning_rate=1e-3)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_B" in name}


def test_adapter_without_gradients_of_single_examples_is_refused(task, llama):
    dora = add_adapter(llama, kind="dora", rank=2, seed=1)
    privacy = ExamplePrivacy(1.0, 1.0, 1e-5, 1.0, steps=1)
    with pytest.raises(UserError, match=r"linear layers only.*DoraLinearLayer"):
        fit_privately(task, dora, EXAMPLES, privacy=privacy, batch_size=4, learning_rate=1e-3)


def test_missing_opacus_is_the_users_error_with_what_to_install(monkeypatch, task, slm):
    monkeypatch.setitem(sys.modules, "opacus.grad_sample", None)
    with pytest.raises(UserError, match=r"needs the package opacus.*pip install 'fedcollm\[privacy\]'"):
        stepped(monkeypatch, task, slm, EXAMPLES)
