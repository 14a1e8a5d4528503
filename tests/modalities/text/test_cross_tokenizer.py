"""Two tokenizers by hand: which rows belong together, and what is left for "another one"."""

import math

import pytest
import torch
from torch.nn import functional

from fedcollm.errors import UserError
from fedcollm.modalities.base import UNLABELLED
from fedcollm.modalities.text.cross_tokenizer import TokenizerBridge, common_columns, summed
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.task import TextTask

# The words of `tokenizer` are cut by `pieces` as they are, but for " col|our" and " ani|mal".
SHARED = b" : a bad bird blue cat dog good green is red the".split(b" ")[1:]


def example(prompt: str, *choices: str, answer: int | None = 0) -> TextExample:
    return TextExample(prompt, prompt, choices, answer, choices)


def divergence(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student), a mean over rows."""
    logs = (values.log_softmax(-1) for values in (student, teacher))
    return functional.kl_div(*logs, reduction="sum", log_target=True) / max(len(teacher), 1)


@pytest.fixture
def bridge(tokenizer, pieces) -> TokenizerBridge:
    return TokenizerBridge(TextTask("toy", tokenizer, 16, 32), TextTask("toy", pieces, 24, 32, start=(1,)))


# --- common outcomes ---


def test_outcomes_are_the_texts_of_both_vocabularies(bridge):
    assert bridge.outcomes == [b" " + word for word in SHARED]


def test_every_token_counts_as_its_text_or_as_another_one(bridge, pieces):
    # <pad> <unk> red green blue cat dog bird is a the : | colour -> another; animal begins with " a" | good bad
    assert bridge.slm_columns.tolist() == [12, 12, 10, 8, 4, 5, 6, 3, 9, 1, 11, 0, 12, 1, 7, 2]
    # <pad> <s> bad good : the a is bird dog cat blue green red | col our; ani begins with " a"; mal <unk> | no tokens
    assert (
        bridge.llm_columns.tolist() == [12, 12, 2, 7, 0, 11, 1, 9, 3, 6, 5, 4, 8, 10] + [12, 12, 1, 12, 12] + [12] * 5
    )


def test_token_of_one_vocabulary_counts_as_the_longest_common_beginning():
    texts, (one, other) = common_columns([b" c", b" card", b"x"], [b" c", b" card", b" cardiology", b" cat", b"y"])
    assert texts == [b" c", b" card"]
    assert one.tolist() == [0, 1, 2]
    assert other.tolist() == [0, 1, 1, 0, 2]


def test_several_tokens_of_one_text_are_one_outcome():
    assert common_columns([b"A", b"A"], [b"A"])[1][0].tolist() == [0, 0]


def test_vocabularies_without_a_common_text_are_refused(tokenizer, bridge):
    strange = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>")
    with pytest.raises(UserError, match="no token in common"):
        TokenizerBridge(bridge.slm, TextTask("toy", strange, 2, 32))


# --- sums of probabilities ---


def test_mass_of_another_one_by_hand():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]).log()
    z = summed(logits, torch.tensor([2, 0, 1, 2]), 3)
    torch.testing.assert_close(z.exp(), torch.tensor([[0.2, 0.3, 0.5], [0.25, 0.25, 0.5]]))
    torch.testing.assert_close(z.log_softmax(-1), z)  # log-probabilities are logits of themselves


def test_small_mass_is_not_lost_in_rounding():
    # 1 - p would be 0 in float32: e^-40 and e^-41 beside 1
    z = summed(torch.tensor([[0.0, -40.0, -41.0]]), torch.tensor([0, 1, 1]), 2)
    assert z[0, 1].item() == pytest.approx(-40 + math.log1p(math.exp(-1)), abs=1e-5)


def test_outcome_without_a_token_stays_finite():
    z = summed(torch.zeros(1, 2), torch.tensor([0, 0]), 2)
    assert z.isfinite().all()
    assert z[0, 1].item() == pytest.approx(-87.3365, abs=1e-3)  # the log of float32's smallest normal number


def test_gradient_by_hand():
    # KL((1/2, 1/2) ‖ (3/4, 1/4)), whose first outcome are two tokens of 1/2 and 1/4: p_student - p_teacher = 1/4, split
    # 2 : 1 among them
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log().requires_grad_()
    divergence(torch.zeros(1, 2), summed(logits, torch.tensor([0, 0, 1]), 2)).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[1 / 6, 1 / 12, -1 / 4]]))


# --- rows that belong together ---


def test_rows_are_paired_where_both_have_read_the_same_text(bridge):
    batch = bridge.collate([example("the cat :", "good colour bird"), example("red :", "animal")])
    # the | : | good colour bird  and  good col our bird: after "good colour" the LLM is one row further
    assert batch.slm_rows.tolist() == [0, 1, 2, 3]
    assert batch.llm_rows.tolist() == [0, 1, 3, 4]
    assert bridge.rows(batch) == 4
    assert batch.slm.targets.tolist() == [14, 12, 7, 13]
    assert batch.llm.targets.tolist() == [3, 14, 15, 8, 16, 17]


def test_unlabelled_example_is_paired_at_its_one_row(bridge):
    batch = bridge.collate([example("red :", "animal"), example("the cat :", "good", answer=None)])
    assert batch.slm_rows.tolist() == [0, 1]
    assert batch.llm_rows.tolist() == [0, 2]
    assert batch.slm.targets.tolist()[-1] == batch.llm.targets.tolist()[-1] == UNLABELLED


def test_unknown_text_is_paired_with_nothing(bridge):
    batch = bridge.collate([example("red :", "strange cat")])
    assert batch.slm_rows.tolist() == [1]  # after it, both have a cat before them
    assert batch.llm_rows.tolist() == [len(batch.llm.targets) - 1]


def test_pairs_keep_to_the_sequence_of_examples_whatever_is_cut(bridge, tokenizer, pieces):
    narrow = TokenizerBridge(TextTask("toy", tokenizer, 16, 6), TextTask("toy", pieces, 24, 6, start=(1,)))
    some = [example("the blue bird is a good dog :", "red colour"), example("a :", "cat", answer=None)]
    cut, whole = narrow.collate(some), bridge.collate(some)
    assert narrow.llm.truncated == narrow.slm.truncated == 1
    assert cut.slm_rows.tolist() == whole.slm_rows.tolist() == [0, 1, 2]
    assert cut.llm_rows.tolist() == whole.llm_rows.tolist() == [0, 1, 3]


def test_size_is_that_of_both(bridge):
    assert bridge.size(example("the cat :", "colour")) == 4 + (1 + 3 + 2)


# --- both models on the common outcomes ---


def test_outcomes_of_both_models_by_hand(bridge):
    batch = bridge.collate([example("red :", "good colour")])
    slm, llm = torch.zeros(2, 16), torch.zeros(3, 24)
    slm[0, 14] = math.log(16)  # good: 16 of 31, all others 1 of 31
    common = bridge.align(batch, slm, llm)
    assert common.slm.shape == common.llm.shape == (2, 13)
    good, a, another = 7, 1, 12
    expected = [16 / 31, 2 / 31, 3 / 31, 2 / 16, 3 / 16]  # " a" with animal; another: <pad>, <unk>, colour
    found = [*(common.slm[0, i].exp().item() for i in (good, a, another)), *common.slm[1, [a, another]].exp().tolist()]
    assert found == pytest.approx(expected, abs=1e-6)
    assert common.llm.exp()[:, [good, a, another]].flatten().tolist() == pytest.approx([1 / 24, 2 / 24, 11 / 24] * 2)
    assert common.slm_targets.tolist() == common.llm_targets.tolist() == [good, another]


def test_unlabelled_row_has_no_right_outcome(bridge):
    batch = bridge.collate([example("red :", "good", answer=None)])
    common = bridge.align(batch, torch.zeros(1, 16), torch.zeros(1, 24))
    assert common.slm_targets.tolist() == common.llm_targets.tolist() == [UNLABELLED]


def test_batch_without_a_pair_of_rows_has_no_divergence(bridge):
    batch = bridge.collate([example("red :", "strange")])
    rows = len(batch.llm.targets)
    common = bridge.align(batch, torch.zeros(1, 16), torch.zeros(rows, 24))
    assert common.slm.shape == common.llm.shape == (0, 13)
    assert divergence(common.llm, common.slm).item() == 0.0


def test_between_models_of_one_tokenizer_it_is_the_plain_divergence(tokenizer):
    task = TextTask("toy", tokenizer, 16, 32)
    bridge = TokenizerBridge(task, task)
    batch = bridge.collate([example("red :", "good colour bird"), example("a :", "cat", answer=None)])
    one, other = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0)).unbind()
    one[:, :2] = other[:, :2] = -50.0  # <pad> and <unk>, which are one outcome here
    common = bridge.align(batch, one, other)
    torch.testing.assert_close(divergence(common.llm, common.slm), divergence(other, one))
    same = bridge.align(batch, one, one.clone())
    assert divergence(same.slm, same.llm).item() == 0.0


def test_each_model_has_its_own_cross_entropy_and_the_common_divergence(bridge):
    batch = bridge.collate([example("red :", "good colour")])
    slm, llm = torch.zeros(2, 16), torch.zeros(3, 24)
    for role, logits, columns in (("slm", slm, 16), ("llm", llm, 24)):
        task, part = bridge.of(role), bridge.part(batch, role)
        assert task.loss(logits, part).item() == pytest.approx(math.log(columns), abs=1e-6)
        assert task.labelled(part) == len(logits)
    rows = bridge.align(batch, slm, llm)
    # LLM: " a" 2/24, another 11/24, eleven others 1/24; SLM: 2/16, 3/16, 1/16
    kl = (2 * math.log(16 / 24) + 11 * math.log(11 / 24 * 16 / 3) + 11 * math.log(16 / 24)) / 24
    reverse = (2 * math.log(24 / 16) + 3 * math.log(3 / 16 * 24 / 11) + 11 * math.log(24 / 16)) / 16
    assert divergence(rows.llm, rows.slm).item() == pytest.approx(kl, abs=1e-6)
    assert divergence(rows.slm, rows.llm).item() == pytest.approx(reverse, abs=1e-6)


# --- as a modality ---


def test_roles_have_tasks_of_their_own(bridge):
    batch = bridge.collate([example("red :", "good")])
    assert (bridge.of("slm"), bridge.of("llm")) == (bridge.slm, bridge.llm)
    assert (bridge.part(batch, "slm"), bridge.part(batch, "llm")) == (batch.slm, batch.llm)
    assert bridge.facts() == {"vocabulary_size": 16, "context_length": 32}
    assert bridge.options == {"slm": bridge.slm.options, "llm": bridge.llm.options}
    for ask in (bridge.logits, bridge.score):
        with pytest.raises(TypeError, match="of"):
            ask(None, batch)


def test_notes_are_of_the_model_that_cut_more_prompts(tokenizer, pieces):
    bridge = TokenizerBridge(TextTask("toy", tokenizer, 16, 3), TextTask("toy", pieces, 24, 3, start=(1,)))
    assert bridge.notes() == []
    bridge.collate([example("red green blue", "cat")])  # three tokens for the SLM, four with <s> for the LLM
    assert (bridge.slm.truncated, bridge.llm.truncated) == (0, 1)
    assert bridge.notes() == bridge.llm.notes() != []


def with_end(words, name: str):
    """A copy of a tokenizer with a token that ends a text."""
    made = type(words)(tokenizer_object=words.backend_tokenizer, pad_token="<pad>", unk_token="<unk>")
    made.backend_tokenizer.add_special_tokens([name])
    made.eos_token = name
    return made


def test_end_of_a_free_answer_is_an_outcome_of_both(tokenizer, pieces):
    one, other = (with_end(words, name) for words, name in ((tokenizer, "<end>"), (pieces, "</s>")))
    bridge = TokenizerBridge(TextTask("toy", one, len(one), 32), TextTask("toy", other, len(other), 32))
    batch = bridge.collate([example("the cat :", "good colour"), example("red :", "cat", "dog")])
    # good | colour | end and good | col | our | end; a choice has no end
    assert (batch.slm.targets.tolist()[2], len(batch.slm.targets)) == (one.eos_token_id, 4)
    assert (batch.llm.targets.tolist()[3], len(batch.llm.targets)) == (other.eos_token_id, 5)
    assert (batch.slm_rows.tolist(), batch.llm_rows.tolist()) == ([0, 1, 2, 3], [0, 1, 3, 4])
    rows = bridge.align(batch, torch.zeros(4, len(one)), torch.zeros(5, len(other)))
    end = bridge.slm_columns[one.eos_token_id].item()
    assert end == bridge.llm_columns[other.eos_token_id].item() != len(bridge.outcomes)
    assert rows.slm_targets.tolist()[2] == rows.llm_targets.tolist()[2] == end
