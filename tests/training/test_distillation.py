"""Eq. 4-6 by hand on 2-class rows, and the server's loop on two tiny models."""

import copy
import math

import peft
import pytest
import torch
from tests import parties
from tests.parties import add_adapter, mutual_losses
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fedcollm.config import choices
from fedcollm.errors import NonFiniteError
from fedcollm.modalities.base import UNLABELLED, cross_entropy
from fedcollm.modalities.text.task import TextExample, TextTask
from fedcollm.models.adapters import read_adapter
from fedcollm.training import divergences
from fedcollm.training.divergences import divergence, uncertainty

LN2, LN3, LN9 = math.log(2), math.log(3), math.log(9)

# Row 1: teacher (1/2, 1/2), student (3/4, 1/4). Row 2: teacher (9/10, 1/10), student (1/2, 1/2).
TEACHER = torch.tensor([[0.0, 0.0], [LN9, 0.0]])
STUDENT = torch.tensor([[LN3, 0.0], [0.0, 0.0]])
ROW_1 = 0.1438410  # 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3)

MIXTURES = ["jensen_shannon", "skew_kl", "skew_reverse_kl"]
KINDS = ["forward_kl", "reverse_kl", *MIXTURES, "total_variation"]


def gradients(loss: torch.Tensor, *logits: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, logits))


# --- the divergence ---


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_of_equal_logits_is_exactly_zero(kind, temperature):
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0)) * 20
    assert divergence(logits, logits.clone(), temperature, kind).item() == 0.0


@pytest.mark.parametrize("kind", MIXTURES)
def test_divergence_of_equal_logits_is_zero_up_to_rounding(kind):
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0)) * 20
    assert divergence(logits, logits.clone(), kind=kind).item() == pytest.approx(0.0, abs=1e-6)


def test_forward_kl_by_hand():
    # row 2: 9/10 ln(9/5) + 1/10 ln(1/5) = 0.5290080 - 0.1609438 = 0.3680642; mean of both rows:
    assert divergence(TEACHER, STUDENT).item() == pytest.approx(0.2559526, abs=1e-6)


def test_reverse_kl_by_hand():
    # row 1: 3/4 ln(3/2) + 1/4 ln(1/2) = 0.1308120; row 2: 1/2 ln(5/9) + 1/2 ln 5 = 0.5108256
    assert divergence(TEACHER, STUDENT, kind="reverse_kl").item() == pytest.approx(0.3208188, abs=1e-6)


def test_jensen_shannon_by_hand():
    # row 1, m = (5/8, 3/8): KL(p ‖ m) = 1/2 ln(4/5) + 1/2 ln(4/3) = 0.0322693,
    #     KL(q ‖ m) = 3/4 ln(6/5) + 1/4 ln(2/3) = 0.0353749; half their sum is 0.0338221
    # row 2, m = (7/10, 3/10): KL(p ‖ m) = 9/10 ln(9/7) + 1/10 ln(1/3) = 0.1163218,
    #     KL(q ‖ m) = 1/2 ln(5/7) + 1/2 ln(5/3) = 0.0871767; half their sum is 0.1017492
    assert divergence(TEACHER, STUDENT, kind="jensen_shannon").item() == pytest.approx(0.0677857, abs=1e-6)


def test_skew_kl_by_hand():
    # row 1, 1/10 p + 9/10 q = (0.725, 0.275): 1/2 ln(20/29) + 1/2 ln(20/11) = 0.1131367
    # row 2, (0.54, 0.46): 9/10 ln(5/3) + 1/10 ln(5/23) = 0.3071374
    assert divergence(TEACHER, STUDENT, kind="skew_kl").item() == pytest.approx(0.2101371, abs=1e-6)


def test_skew_reverse_kl_by_hand():
    # row 1, 9/10 p + 1/10 q = (0.525, 0.475): 3/4 ln(10/7) + 1/4 ln(10/19) = 0.1070427
    # row 2, (0.86, 0.14): 1/2 ln(25/43) + 1/2 ln(25/7) = 0.3653207
    assert divergence(TEACHER, STUDENT, kind="skew_reverse_kl").item() == pytest.approx(0.2361817, abs=1e-6)


def test_total_variation_by_hand():
    # row 1: (|1/2 - 3/4| + |1/2 - 1/4|) / 2 = 0.25; row 2: (|9/10 - 1/2| + |1/10 - 1/2|) / 2 = 0.4
    assert divergence(TEACHER, STUDENT, kind="total_variation").item() == pytest.approx(0.325, abs=1e-6)
    assert divergence(STUDENT, TEACHER, kind="total_variation").item() == pytest.approx(0.325, abs=1e-6)


def test_every_choice_has_a_divergence_of_its_name():
    assert divergences.DIVERGENCES.keys() == choices.DIVERGENCES.keys()


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        ("total_variation", 1.0),
        ("jensen_shannon", LN2),  # p and q disjoint: m holds half of each
        ("skew_kl", 2.3025851),  # the mixture holds 1/10 of p: ln 10
        ("skew_reverse_kl", 2.3025851),
    ],
)
def test_mixtures_are_bounded_where_kl_grows_without_bound(kind, bound):
    teacher, student = torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 1000.0]], requires_grad=True)
    loss = divergence(teacher, student, kind=kind)
    loss.backward()
    assert loss.item() == pytest.approx(bound, abs=1e-6)
    assert divergence(teacher, student).item() == 1000.0
    assert student.grad.isfinite().all()


def test_jensen_shannon_has_no_direction_and_the_others_have_one():
    there = {kind: divergence(TEACHER, STUDENT, kind=kind).item() for kind in KINDS}
    back = {kind: divergence(STUDENT, TEACHER, kind=kind).item() for kind in KINDS}
    assert back["jensen_shannon"] == pytest.approx(there["jensen_shannon"], abs=1e-7)
    assert back["forward_kl"] == pytest.approx(there["reverse_kl"], abs=1e-7)
    # KL(p ‖ α p + (1 - α) q) with p and q exchanged
    assert back["skew_kl"] == pytest.approx(there["skew_reverse_kl"], abs=1e-7)
    assert back["skew_kl"] != pytest.approx(there["skew_kl"], abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "slope"),
    [
        # dD/dz_0 = q_0 (g_0 - q_0 g_0 - q_1 g_1) with g = dD/dq; q = (3/4, 1/4), p = (1/2, 1/2)
        # g = 1/2 ln(q / m) up to a constant: 1/2 * 3/4 * 1/4 * (ln(6/5) - ln(2/3))
        ("jensen_shannon", 0.0551051),
        # g = -9/10 p / m, m = (0.725, 0.275): 3/16 * (-0.6206897 + 1.6363636)
        ("skew_kl", 0.1904389),
        # g = ln(q / m) - 1/10 q / m up to a constant, m = (0.525, 0.475):
        # 3/16 * (0.3566749 - 0.1428571 + 0.6418539 + 0.0526316)
        ("skew_reverse_kl", 0.1703069),
    ],
)
def test_gradient_of_mixtures_by_hand(kind, slope):
    student = torch.tensor([[LN3, 0.0]], requires_grad=True)
    (gradient,) = gradients(divergence(torch.zeros(1, 2), student, kind=kind), student)
    torch.testing.assert_close(gradient, torch.tensor([[slope, -slope]]), atol=1e-6, rtol=0)


def test_rows_that_are_not_taught_count_as_zeros():
    student = STUDENT.clone().requires_grad_()
    loss = divergence(TEACHER, student, taught=torch.tensor([True, False]))
    assert loss.item() == pytest.approx(ROW_1 / 2, abs=1e-6)
    (gradient,) = gradients(loss, student)
    torch.testing.assert_close(gradient, torch.tensor([[0.125, -0.125], [0.0, 0.0]]))  # (q - p) / 2
    assert divergence(TEACHER, STUDENT, taught=torch.tensor([False, False])).item() == 0.0
    assert torch.equal(divergence(TEACHER, STUDENT, taught=torch.tensor([True, True])), divergence(TEACHER, STUDENT))


def test_temperature_softens_and_scales_by_its_square():
    # halved logits are those of row 1, and τ² = 4
    student = torch.tensor([[2 * LN3, 0.0]])
    assert divergence(torch.zeros(1, 2), student, temperature=2.0).item() == pytest.approx(4 * ROW_1, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_forward_kl_gradient_is_the_difference_of_probabilities(temperature):
    # d/dz τ² KL = τ (p_student - p_teacher): the softened probabilities are those of row 1 for both τ
    student = torch.tensor([[temperature * LN3, 0.0]], requires_grad=True)
    (gradient,) = gradients(divergence(torch.zeros(1, 2), student, temperature), student)
    torch.testing.assert_close(gradient, temperature * torch.tensor([[0.25, -0.25]]))


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_moves_the_student_and_never_the_teacher(kind):
    teacher, student = TEACHER.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    divergence(teacher, student, kind=kind).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert (student.grad.abs() > 0.02).all()


def test_divergence_is_a_mean_over_rows():
    torch.testing.assert_close(divergence(TEACHER.repeat(3, 1), STUDENT.repeat(3, 1)), divergence(TEACHER, STUDENT))


def test_divergence_of_no_rows_is_zero():
    student = torch.zeros(0, 2, requires_grad=True)
    loss = divergence(torch.zeros(0, 2), student)
    loss.backward()
    assert loss.item() == 0.0


# --- both roles' losses ---


def test_losses_by_hand():
    # p_g = (3/4, 1/4), p_f = (1/2, 1/2), y = 0, λ = 2
    slm = torch.tensor([[LN3, 0.0]], requires_grad=True)
    llm = torch.zeros(1, 2, requires_grad=True)
    losses = mutual_losses(slm, llm, torch.tensor([0]), weight=2.0)
    assert losses.slm.item() == pytest.approx(0.2876821, abs=1e-6)  # ln(4/3)
    assert losses.llm.item() == pytest.approx(LN2, abs=1e-6)
    assert losses.kl.item() == pytest.approx(ROW_1, abs=1e-6)
    # ln(4/3) + ln 2 + 2 * KL(f ‖ g) + 2 * KL(g ‖ f), where KL(g ‖ f) = 0.1308120
    assert losses.total.item() == pytest.approx(0.2876821 + 0.6931472 + 2 * 0.1438410 + 2 * 0.1308120, abs=1e-6)
    slm_gradient, llm_gradient = gradients(losses.total, slm, llm)
    # (p_g - y) + λ (p_g - p_f) and (p_f - y) + λ (p_f - p_g)
    torch.testing.assert_close(slm_gradient, torch.tensor([[0.25, -0.25]]))
    torch.testing.assert_close(llm_gradient, torch.tensor([[-1.0, 1.0]]))


@pytest.mark.parametrize("kind", KINDS)
def test_one_backward_gives_the_gradients_of_both_losses_apart(kind):
    generator = torch.Generator().manual_seed(1)
    slm, llm = (torch.randn(5, 7, generator=generator, requires_grad=True) for _ in range(2))
    targets = torch.tensor([0, 6, UNLABELLED, 3, UNLABELLED])
    total = mutual_losses(slm, llm, targets, weight=0.7, llm_weight=0.3, temperature=2.0, divergence=kind).total
    together = gradients(total, slm, llm)
    apart = [
        *gradients(cross_entropy(slm, targets) + 0.7 * divergence(llm, slm, 2.0, kind), slm),
        *gradients(cross_entropy(llm, targets) + 0.3 * divergence(slm, llm, 2.0, kind), llm),
    ]
    torch.testing.assert_close(together, apart)


def test_duplicated_rows_change_no_loss():
    targets = torch.tensor([0, 1])
    once = mutual_losses(STUDENT, TEACHER, targets, weight=5.0)
    thrice = mutual_losses(STUDENT.repeat(3, 1), TEACHER.repeat(3, 1), targets.repeat(3), weight=5.0)
    for part in ("slm", "llm", "kl", "total"):
        torch.testing.assert_close(getattr(once, part), getattr(thrice, part))


def test_unlabelled_rows_count_in_kl_and_not_in_cross_entropy():
    losses = mutual_losses(STUDENT, TEACHER, torch.tensor([UNLABELLED, 0]))
    assert losses.slm.item() == pytest.approx(LN2, abs=1e-6)  # row 2 alone, p_g = (1/2, 1/2)
    assert losses.llm.item() == pytest.approx(0.1053605, abs=1e-6)  # row 2 alone, ln(10/9)
    assert losses.kl.item() == pytest.approx(0.2559526, abs=1e-6)  # both rows


def test_batch_without_labels_is_tuned_by_kl_alone():
    slm = torch.tensor([[LN3, 0.0]], requires_grad=True)
    llm = torch.zeros(1, 2, requires_grad=True)
    losses = mutual_losses(slm, llm, torch.tensor([UNLABELLED]))
    assert losses.slm.item() == 0.0
    assert losses.llm.item() == 0.0
    slm_gradient, llm_gradient = gradients(losses.total, slm, llm)
    torch.testing.assert_close(slm_gradient, torch.tensor([[0.25, -0.25]]))
    torch.testing.assert_close(llm_gradient, torch.tensor([[-0.25, 0.25]]))


def test_weight_zero_is_plain_cross_entropy():
    slm, llm = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    losses = mutual_losses(slm, llm, torch.tensor([0, 1]), weight=0.0)
    # SLM: (ln(4/3) + ln 2) / 2; LLM: (ln 2 + ln 10) / 2
    assert losses.total.item() == pytest.approx(0.4904147 + 1.4978661, abs=1e-6)
    assert losses.kl.item() == 0.0
    slm_gradient, llm_gradient = gradients(losses.total, slm, llm)  # (p - y) / 2
    torch.testing.assert_close(slm_gradient, torch.tensor([[-0.125, 0.125], [0.25, -0.25]]))
    torch.testing.assert_close(llm_gradient, torch.tensor([[-0.25, 0.25], [0.45, -0.45]]))


def test_llm_weight_zero_leaves_the_llm_its_cross_entropy():
    slm, llm = torch.tensor([[LN3, 0.0]], requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    total = mutual_losses(slm, llm, torch.tensor([0]), weight=2.0, llm_weight=0.0).total
    slm_gradient, llm_gradient = gradients(total, slm, llm)
    torch.testing.assert_close(slm_gradient, torch.tensor([[0.25, -0.25]]))  # as with mutual distillation
    torch.testing.assert_close(llm_gradient, torch.tensor([[-0.5, 0.5]]))  # p_f - y


def test_weight_zero_with_llm_weight_teaches_the_llm_alone():
    slm, llm = torch.tensor([[LN3, 0.0]], requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    total = mutual_losses(slm, llm, torch.tensor([0]), weight=0.0, llm_weight=2.0).total
    slm_gradient, llm_gradient = gradients(total, slm, llm)
    torch.testing.assert_close(slm_gradient, torch.tensor([[-0.25, 0.25]]))  # p_g - y
    torch.testing.assert_close(llm_gradient, torch.tensor([[-1.0, 1.0]]))


# --- who knows better ---

HALF, SURE = [0.0, 0.0], [LN3, 0.0]  # (1/2, 1/2) and (3/4, 1/4)


@pytest.mark.parametrize(
    ("first", "second", "target", "teaches"),
    [
        (SURE, HALF, 0, True),  # cross-entropy ln(4/3) against ln 2
        (HALF, SURE, 0, False),
        (SURE, HALF, 1, False),  # sure of what is wrong: ln 4 against ln 2
        (HALF, SURE, 1, True),
        (SURE, HALF, UNLABELLED, True),  # entropy 0.5623351 against ln 2
        (HALF, SURE, UNLABELLED, False),
        ([0.0, LN3], HALF, UNLABELLED, True),  # whichever answer it is sure of
        (SURE, SURE, 0, False),
        (SURE, SURE, UNLABELLED, False),
        ([0.0, LN3], SURE, UNLABELLED, False),  # equally sure, of different answers
    ],
)
def test_who_knows_better_by_hand(first, second, target, teaches):
    ours, theirs = (uncertainty(torch.tensor([row]), torch.tensor([target])) for row in (first, second))
    assert (ours < theirs).tolist() == [teaches]


def test_each_row_has_its_own_teacher_and_no_gradient_flows_through_the_choice():
    slm, llm = (torch.tensor(rows, requires_grad=True) for rows in ([SURE, SURE, HALF], [HALF, HALF, SURE]))
    targets = torch.tensor([0, 1, UNLABELLED])
    chosen = uncertainty(slm, targets) < uncertainty(llm, targets)
    assert chosen.tolist() == [True, False, False]
    assert not chosen.requires_grad


def test_selective_losses_by_hand():
    # row 1: p_g = (3/4, 1/4) knows y = 0 better than p_f = (1/2, 1/2), so that only the LLM is taught;
    # row 2: p_f = (9/10, 1/10) knows it better than p_g = (1/2, 1/2), so that only the SLM is taught
    slm, llm = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    losses = mutual_losses(slm, llm, torch.tensor([0, 0]), weight=2.0, teach_where_better=True)
    assert losses.kl.item() == pytest.approx(0.3680642 / 2, abs=1e-6)  # KL(p_f ‖ p_g) of row 2
    # CE (ln(4/3) + ln 2) / 2 and (ln 2 + ln(10/9)) / 2; KL(p_g ‖ p_f) of row 1 is 0.1308120
    assert losses.total.item() == pytest.approx(0.4904147 + 0.3992538 + 2 * (0.1840321 + 0.0654060), abs=1e-6)
    slm_gradient, llm_gradient = gradients(losses.total, slm, llm)
    # (p - y) / 2, and where taught λ (p - p of the teacher) / 2
    torch.testing.assert_close(slm_gradient, torch.tensor([[-0.125, 0.125], [-0.25 - 0.4, 0.25 + 0.4]]))
    torch.testing.assert_close(llm_gradient, torch.tensor([[-0.25 - 0.25, 0.25 + 0.25], [-0.05, 0.05]]))


def test_selective_losses_of_unlabelled_rows_go_by_confidence():
    # entropies: SLM 0.5623351 and ln 2, LLM ln 2 and 0.3250830; with labels 1 it would be the other way round
    losses = mutual_losses(STUDENT, TEACHER, torch.tensor([UNLABELLED, UNLABELLED]), teach_where_better=True)
    assert losses.kl.item() == pytest.approx(0.3680642 / 2, abs=1e-6)
    assert losses.total.item() == pytest.approx(0.1840321 + 0.0654060, abs=1e-6)
    labelled = mutual_losses(STUDENT, TEACHER, torch.tensor([1, 1]), teach_where_better=True)
    assert labelled.kl.item() == pytest.approx(ROW_1 / 2, abs=1e-6)


# --- the loop ---


@pytest.fixture
def task(tokenizer) -> TextTask:
    return TextTask("toy", tokenizer, 16, 32)


def example(prompt: str, answer: str) -> TextExample:
    return TextExample(prompt, prompt, (answer,), 0, (answer,))


PUBLIC = [
    example("cat is a :", "animal"),
    example("the dog is a :", "animal"),
    example("red is a :", "good colour"),
    example("the blue is a :", "colour").without_label(),
    example("bird is :", "good").without_label(),
]


@pytest.fixture
def pair(llama) -> tuple[peft.PeftModel, peft.PeftModel]:
    """A tiny SLM and a tiny LLM with different weights."""
    torch.manual_seed(9)
    other = type(llama)(llama.config)
    return add_adapter(llama, rank=2, seed=1), add_adapter(other, rank=4, seed=2)


def distil(task, pair, public=PUBLIC, **options) -> tuple[dict, dict, dict[str, float]]:
    """Both adapters afterwards, and the losses; the pair itself is left as it was."""
    slm, llm = copy.deepcopy(pair)
    losses = parties.distil(
        task, slm, llm, public, **{"epochs": 2, "batch_size": 2, "learning_rate": 1e-2, "seed": 3} | options
    )
    return read_adapter(slm), read_adapter(llm), losses


def equal(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_distillation_changes_every_tensor_of_both_adapters(task, pair):
    slm, llm, _ = distil(task, pair)
    for before, after in zip(map(read_adapter, pair), (slm, llm), strict=True):
        assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_distillation_leaves_the_frozen_bases_untouched(task, pair):
    before = [{n: p.clone() for n, p in model.named_parameters() if not p.requires_grad} for model in pair]
    parties.distil(task, *pair, PUBLIC, epochs=1, batch_size=2, learning_rate=1e-2, seed=3)
    after = [{n: p for n, p in model.named_parameters() if not p.requires_grad} for model in pair]
    assert len(before[0]) > 0
    assert equal(before[0], after[0])
    assert equal(before[1], after[1])


def test_distillation_is_a_function_of_its_seed(task, pair):
    first, again, other = distil(task, pair), distil(task, pair), distil(task, pair, seed=4)
    assert first[2] == again[2]
    assert equal(first[0], again[0])
    assert equal(first[1], again[1])
    assert not equal(first[0], other[0])
    assert not equal(first[1], other[1])


def test_dropout_comes_from_the_seed_too(task, llama):
    torch.manual_seed(9)
    other = type(llama)(llama.config)
    pair = add_adapter(llama, rank=2, dropout=0.5, seed=1), add_adapter(other, rank=4, dropout=0.5, seed=2)
    first = distil(task, pair)
    torch.manual_seed(123)
    again = distil(task, pair)
    assert first[2] == again[2]
    assert equal(first[0], again[0])
    assert equal(first[1], again[1])


def test_both_models_step_once_a_batch_from_one_pair_of_forward_passes(task, pair):
    events: list[str] = []
    for name, model in zip(("slm", "llm"), pair, strict=True):
        model.register_forward_hook(lambda *_, name=name: events.append(name))
    handle = register_optimizer_step_pre_hook(lambda *_: events.append("step"))
    try:
        parties.distil(task, *pair, PUBLIC, epochs=2, batch_size=2, learning_rate=1e-2, seed=3)
    finally:
        handle.remove()
    assert events == ["slm", "llm", "step", "step"] * 6  # 2 epochs of 5 examples in batches of 2


def test_each_models_gradient_is_clipped_by_itself(task, pair):
    norms = []

    def look(optimizer, args, kwargs) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    hook = register_optimizer_step_pre_hook(look)
    try:
        distil(task, pair)
        free, norms[:] = list(norms), []
        distil(task, pair, max_grad_norm=1e-3)
    finally:
        hook.remove()
    assert min(free) > 1e-3
    assert norms == pytest.approx([1e-3] * len(free), rel=1e-2)


def test_one_way_distillation_tunes_the_llm_as_cross_entropy_alone(task, pair):
    slm, llm, _ = distil(task, pair, llm_weight=0.0)
    slm_alone, llm_alone, _ = distil(task, pair, weight=0.0)
    assert equal(llm, llm_alone)
    assert not equal(slm, slm_alone)


@pytest.mark.parametrize(
    "option", [{"teach_where_better": True}, *({"divergence": kind} for kind in KINDS[1:])], ids=str
)
def test_options_change_what_both_models_learn(task, pair, option):
    slm, llm, losses = distil(task, pair, **option)
    plain_slm, plain_llm, plain_losses = distil(task, pair)
    assert not equal(slm, plain_slm)
    assert not equal(llm, plain_llm)
    assert 0 < losses["kl"] != plain_losses["kl"]


def test_unlabelled_examples_move_nothing_without_kl(task, pair):
    unlabelled = PUBLIC[3:]
    slm, llm, losses = distil(task, pair, unlabelled, weight=0.0)
    assert losses == {"slm": 0.0, "llm": 0.0, "kl": 0.0}
    assert equal(slm, read_adapter(pair[0]))
    assert equal(llm, read_adapter(pair[1]))


def test_distillation_brings_the_models_together(task, pair):
    _, _, losses = distil(task, pair, PUBLIC[3:], epochs=30, batch_size=2)
    _, _, before = distil(task, pair, PUBLIC[3:], epochs=1, batch_size=2, learning_rate=1e-9)
    assert 0 < losses["kl"] < 0.1 * before["kl"]


def test_reported_losses_are_means_over_the_last_epoch(task, pair):
    # With next to no learning rate, one batch of all five examples in each epoch: the loss of the models as they are.
    _, _, losses = distil(task, pair, batch_size=5, learning_rate=1e-12)
    batch = task.collate(PUBLIC)
    with torch.no_grad():
        now = mutual_losses(*(task.logits(model, batch) for model in pair), task.targets(batch))
    expected = {name: getattr(now, name).item() for name in ("slm", "llm", "kl")}
    assert losses == pytest.approx(expected, rel=1e-5)


def test_models_are_left_in_evaluation_mode(task, pair):
    parties.distil(task, *pair, PUBLIC, epochs=1, batch_size=5, learning_rate=1e-3, seed=0)
    assert not any(module.training for model in pair for module in model.modules())


def test_no_epochs_change_nothing(task, pair):
    slm, llm, _ = distil(task, pair, epochs=0)
    assert equal(slm, read_adapter(pair[0]))
    assert equal(llm, read_adapter(pair[1]))


def test_loss_that_is_not_a_number_names_distillation(task, pair):
    with torch.no_grad():
        next(p for p in pair[1].parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"distillation.*llm loss became nan"):
        parties.distil(task, *pair, PUBLIC, epochs=1, batch_size=5, learning_rate=1e-3, seed=0)
