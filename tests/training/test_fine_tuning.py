"""Cross-entropy by hand, and the one loop of fine-tuning and scoring."""

import copy
import math
import random
from types import SimpleNamespace

import pytest
import torch
from tests.parties import add_adapter, fit
from torch import nn

from fedcollm.config import TrainingConfig
from fedcollm.errors import NonFiniteError
from fedcollm.modalities.base import UNLABELLED, cross_entropy
from fedcollm.modalities.text.task import TextExample, TextTask
from fedcollm.modalities.vision.task import ImageExample, ImageTask
from fedcollm.models.adapters import read_adapter
from fedcollm.models.fused.patch import fuse
from fedcollm.training import optimizers
from fedcollm.training.fine_tuning import check_finite, evaluate, predict, pull_back
from fedcollm.training.optimizers import adamw, clip

# --- cross-entropy ---


def test_cross_entropy_is_the_mean_over_labelled_rows():
    # -ln(1/2) = 0.6931472 and -ln(3/4) = 0.2876821; the third row has no label
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [5.0, -5.0]])
    assert cross_entropy(logits, torch.tensor([1, 0, UNLABELLED])).item() == pytest.approx(0.4904147, abs=1e-6)


def test_cross_entropy_gradient_is_zero_at_unlabelled_rows():
    logits = torch.tensor([[0.0, 0.0], [5.0, -5.0]], requires_grad=True)
    cross_entropy(logits, torch.tensor([1, UNLABELLED])).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, -0.5], [0.0, 0.0]]))


def test_cross_entropy_without_labels_is_zero_with_a_zero_gradient():
    logits = torch.tensor([[1.0, 2.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([UNLABELLED]))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(1, 2))


# --- non-finite losses ---


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_check_finite_names_place_loss_and_remedy(value):
    with pytest.raises(NonFiniteError, match=r"client 2, round 3: the training loss became .*learning rate"):
        check_finite("client 2, round 3", training=value)


def test_check_finite_lets_finite_losses_pass():
    assert check_finite("here", training=1e30, kl=0.0) is None


# --- fit and evaluate, by hand on images: the model's logits are weight * pixels ---


class Scaled(nn.Module):
    """Logits are the pixels times one trainable number; a frozen zero is added."""

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.frozen = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, pixel_values):
        return SimpleNamespace(logits=pixel_values.flatten(1) * self.weight + self.frozen)


IMAGES = ImageTask("pixels", ["a", "b"])


def image(first: float, second: float, target: int | None) -> ImageExample:
    return ImageExample(f"{first}/{second}", torch.tensor([[[first, second]]]), target)


def test_first_step_of_adamw_moves_by_the_learning_rate():
    model = Scaled()
    # the gradient is negative, and the first step of Adam is its sign times the learning rate
    loss = fit(IMAGES, model, [image(math.log(3), 0, 0)], epochs=1, batch_size=4, learning_rate=0.01, seed=0)
    assert loss == pytest.approx(0.2876821, abs=1e-6)  # -ln(3/4), before the step
    assert model.weight.item() == pytest.approx(1.01, abs=1e-6)
    assert model.frozen.item() == 0.0


def test_fit_returns_the_mean_loss_of_the_last_epoch():
    model = Scaled()
    examples = [image(math.log(3), 0, 0), image(0, 0, 1)]
    # one example a batch: epoch 1 is left out; the weight hardly moves, so the last epoch is (ln(4/3) + ln 2) / 2
    assert fit(IMAGES, model, examples, epochs=2, batch_size=1, learning_rate=1e-9, seed=0) == pytest.approx(
        0.4904147, abs=1e-5
    )


def test_fit_returns_a_mean_over_examples_whatever_the_last_batch_holds():
    # three examples in batches of two: (ln(4/3) + ln 2 + ln 2) / 3, however they are shuffled
    examples = [image(math.log(3), 0, 0), image(0, 0, 1), image(0, 0, 0)]
    for seed in range(4):
        loss = fit(IMAGES, Scaled(), examples, epochs=1, batch_size=2, learning_rate=1e-9, seed=seed)
        assert loss == pytest.approx(0.5579922, abs=1e-5)


def test_pull_back_adds_the_gradient_of_the_proximal_term():
    # μ (θ - θ₀) = 1/2 (2, -1), to a gradient of (1/2, 1/2)
    theta, unused = nn.Parameter(torch.tensor([3.0, 1.0])), nn.Parameter(torch.tensor([1.0]))
    theta.grad = torch.tensor([0.5, 0.5])
    pull_back([(theta, torch.tensor([1.0, 2.0])), (unused, torch.tensor([0.0]))], 0.5)
    assert theta.grad.tolist() == [1.5, 0.0]
    assert theta.tolist() == [3.0, 1.0]
    assert unused.grad is None


def test_proximal_steps_by_hand(monkeypatch):
    # One example a step, gradient -(1 - p) ln 3, by plain gradient descent with rate 1 and μ = 2.
    # Step 1: p = 3/4, and θ = θ₀ is not pulled: θ = 1 + ln(3) / 4 = 1.2746531
    # Step 2: p = σ(1.2746531 ln 3) = 0.8022393, gradient -0.2172623 + 2 * 0.2746531: θ = 1.2746531 - 0.3320439
    monkeypatch.setattr(optimizers, "adamw", lambda m, settings: torch.optim.SGD([m.weight], settings.learning_rate))
    model = Scaled()
    settings = {"epochs": 2, "batch_size": 1, "learning_rate": 1.0, "seed": 0}
    loss = fit(IMAGES, model, [image(math.log(3), 0, 0)], proximal=2.0, **settings)
    assert model.weight.item() == pytest.approx(0.9426092, abs=1e-5)
    assert loss == pytest.approx(0.2203483, abs=1e-6)  # -ln 0.8022393: without the proximal term
    free = Scaled()
    fit(IMAGES, free, [image(math.log(3), 0, 0)], **settings)
    assert free.weight.item() == pytest.approx(1.2746531 + 0.2172623, abs=1e-5)


def test_clip_scales_all_trainable_gradients_as_one_vector():
    model = nn.ParameterList([torch.zeros(2), torch.zeros(1), torch.zeros(1)])
    one, two, frozen = model
    frozen.requires_grad_(False)
    for longest, expected in [(None, [3.0, 0.0, 4.0]), (6.0, [3.0, 0.0, 4.0]), (1.0, [0.6, 0.0, 0.8])]:
        one.grad, two.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])  # norm 5
        clip(model, longest)
        assert [*one.grad.tolist(), *two.grad.tolist()] == pytest.approx(expected, abs=1e-5)
    assert frozen.grad is None


def test_clipped_steps_by_hand(monkeypatch):
    # gradient -ln(3) / 4 = -0.2746531, cut to -0.1: θ = 1.1; the pull of μ = 2, in step 2, is part of what is cut:
    # p = σ(1.1 ln 3) = 0.7700287, gradient -0.2526492 + 2 * 0.1 = -0.0526492, which is short enough
    monkeypatch.setattr(optimizers, "adamw", lambda m, settings: torch.optim.SGD([m.weight], settings.learning_rate))
    settings = {"batch_size": 1, "learning_rate": 1.0, "seed": 0, "proximal": 2.0, "max_grad_norm": 0.1}
    for epochs, weight in [(1, 1.1), (2, 1.1526492)]:
        model = Scaled()
        fit(IMAGES, model, [image(math.log(3), 0, 0)], epochs=epochs, **settings)
        assert model.weight.item() == pytest.approx(weight, abs=1e-5)


def test_fit_leaves_the_model_in_evaluation_mode():
    model = Scaled()
    fit(IMAGES, model, [image(1, 0, 0)], epochs=1, batch_size=1, learning_rate=0.1, seed=0)
    assert not model.training


def test_loss_that_is_not_a_number_names_the_place_and_takes_no_step():
    model = Scaled()
    with pytest.raises(NonFiniteError, match="client a, round 3: the training loss became nan"):
        fit(
            IMAGES,
            model,
            [image(math.nan, 0, 0)],
            epochs=1,
            batch_size=1,
            learning_rate=0.1,
            seed=0,
            where="client a, round 3",
        )
    assert model.weight.item() == 1.0


def test_last_step_that_ends_in_infinity_is_noticed():
    # the loss before the only step is finite; the step itself leaves what float32 can hold
    with pytest.raises(NonFiniteError, match="client a, round 3"):
        fit(
            IMAGES,
            Scaled(),
            [image(1, 0, 0)],
            epochs=1,
            batch_size=1,
            learning_rate=1e39,
            seed=0,
            where="client a, round 3",
        )


def test_optimizer_holds_trainable_parameters_only():
    model = Scaled()
    (group,) = adamw(model, TrainingConfig(learning_rate=0.5)).param_groups
    assert group["params"] == [model.weight]
    assert group["lr"] == 0.5
    assert group["weight_decay"] == 0.0


def test_evaluate_sums_over_examples_whatever_the_batch_size():
    examples = [image(1, 0, 0), image(0, 1, 1), image(0, 1, 0), image(2, 1, 0), image(1, 2, 0)]
    for batch_size in (1, 2, 4, 5, 100):
        score = evaluate(IMAGES, Scaled(), examples, batch_size)
        assert score.count == 5
        assert score.sums == {"acc": 3.0}
        assert score.confusion == {("a", "a"): 2, ("b", "b"): 1, ("a", "b"): 2}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_predictions_are_in_the_order_of_the_examples_whatever_the_batch_size(batch_size):
    examples = [image(i, 0, 0) for i in (3, 1, 2)]
    found = predict(IMAGES, Scaled(), examples, batch_size)
    expected = [IMAGES.logits(Scaled(), IMAGES.collate([one])).softmax(-1)[0] for one in examples]
    torch.testing.assert_close(found, [one.detach() for one in expected])


def test_evaluate_switches_dropout_off_and_keeps_no_graph():
    seen = []

    class Watching(Scaled):
        def forward(self, pixel_values):
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(pixel_values)

    evaluate(IMAGES, Watching().train(), [image(1, 0, 0)], 1)
    assert seen == [(False, False)]


def test_evaluate_of_no_examples_counts_none():
    assert evaluate(IMAGES, Scaled(), [], 4).count == 0


# --- fit on text with a LoRA adapter ---


def fact(noun: str, answer: str) -> TextExample:
    return TextExample(
        noun, f"the {noun} is a :", ("animal", "colour"), ("animal", "colour").index(answer), ("animal", "colour")
    )


FACTS = [fact(noun, "animal") for noun in ("cat", "dog", "bird")] + [
    fact(noun, "colour") for noun in ("red", "green", "blue")
]


@pytest.fixture
def task(tokenizer) -> TextTask:
    return TextTask("toy", tokenizer, 16, 32)


@pytest.fixture
def model(llama) -> nn.Module:
    return add_adapter(llama, rank=4, seed=1)


def test_fit_learns_a_toy_task(task, model):
    before = task_loss(task, model)
    assert evaluate(task, model, FACTS, 6).value < 1.0
    fit(task, model, FACTS, epochs=40, batch_size=2, learning_rate=1e-2, seed=0)
    assert task_loss(task, model) < 0.25 * before
    assert evaluate(task, model, FACTS, 6).value == 1.0


def task_loss(task, model) -> float:
    batch = task.collate(FACTS)
    with torch.no_grad():
        return cross_entropy(task.logits(model, batch), task.targets(batch)).item()


def test_fit_changes_trainable_parameters_only(task, model):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fit(task, model, FACTS, epochs=2, batch_size=2, learning_rate=1e-2, seed=0)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_proximal_term_keeps_an_adapter_near_its_start(task, model):
    start = read_adapter(model)
    distances = []
    for proximal in (0.0, 10.0):
        tuned = copy.deepcopy(model)
        fit(task, tuned, FACTS, epochs=10, batch_size=2, learning_rate=1e-2, seed=0, proximal=proximal)
        distances.append(
            math.dist(*(torch.cat([t.flatten() for t in a.values()]) for a in (start, read_adapter(tuned))))
        )
    assert 0 < distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize("fused", [False, True])
def test_frozen_a_stays_at_its_start_bit_for_bit(task, llama, fused):
    model = add_adapter(llama, rank=4, seed=1, freeze_a=True)
    if fused:
        fuse(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fit(task, model, FACTS, epochs=2, batch_size=2, learning_rate=1e-2, seed=0)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_B" in name}
    assert len(changed) == 14  # 7 layers in each of 2


def test_fit_is_a_function_of_its_seed_even_with_dropout(task, llama):
    model = add_adapter(llama, rank=4, dropout=0.5, seed=1)

    def tuned(seed):
        fresh = copy.deepcopy(model)
        loss = fit(task, fresh, FACTS, epochs=2, batch_size=2, learning_rate=1e-2, seed=seed)
        return loss, read_adapter(fresh)

    loss, adapter = tuned(5)
    random.seed(1), torch.manual_seed(1)
    loss_again, again = tuned(5)
    loss_other, _ = tuned(6)
    assert loss == loss_again
    assert all(torch.equal(adapter[name], again[name]) for name in adapter)
    assert loss != loss_other


def test_text_score_does_not_depend_on_the_batch_size(task, model):
    fit(task, model, FACTS, epochs=3, batch_size=6, learning_rate=1e-2, seed=0)
    scores = [evaluate(task, model, FACTS, batch_size) for batch_size in (1, 4, 6)]
    assert scores[0] == scores[1] == scores[2]
    assert scores[0].count == 6
