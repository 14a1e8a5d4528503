"""Weights of the rows of D_a: which row gets which, and what they do to the losses."""

import pytest
import torch
from tests.training.test_distillation import LN3, STUDENT, TEACHER
from tests.training.test_fine_tuning import IMAGES, Scaled, image

from fedcollm.config import DistillationConfig, ServerConfig
from fedcollm.errors import UserError
from fedcollm.modalities.base import UNLABELLED, Rows
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.task import TextTask
from fedcollm.training import distillation
from fedcollm.training.distillation import ModelPair, mutual_losses
from fedcollm.training.trust import TrustingCollator

NONE = torch.tensor([UNLABELLED, UNLABELLED])


def text(prompt: str, answer: str | None) -> TextExample:
    choices = ("good dog", "bad") if answer is None else (answer, "bad")
    return TextExample(prompt, prompt, choices, None if answer is None else 0, choices)


def test_every_token_of_an_answer_weighs_as_its_example(tokenizer):
    task = TextTask("toy", tokenizer, 16, 32)
    public = [text("cat", "good"), text("dog", "red green blue"), text("bird", None)]
    trust = {"slm": [0.5, 0.25, 1.0], "llm": [0.0, 1.0, 0.75]}
    made = TrustingCollator(task, public, trust).collate([public[1], public[2], public[0]])
    assert made.trust["slm"].tolist() == [0.25, 0.25, 0.25, 1.0, 0.5]
    assert made.trust["llm"].tolist() == [1.0, 1.0, 1.0, 0.75, 0.0]
    assert len(made.batch.targets) == 5
    assert TrustingCollator(task, public, None).collate(public).trust is None


def test_rows_that_are_not_those_of_the_examples_are_refused(tokenizer):
    class Odd(TextTask):
        def rows(self, batch):
            return 7

    public = [text("cat", "good"), text("dog", "bad")]
    collator = TrustingCollator(Odd("toy", tokenizer, 16, 32), public, {"slm": [1.0, 1.0]})
    with pytest.raises(UserError, match=r"Odd makes 7 rows of 2 examples that have 14 .* Set .*gate: none"):
        collator.collate(public)


@pytest.mark.parametrize(
    ("better", "kl", "total"),
    [  # KL(p_f ‖ p_g) is 0.1438410 and 0.3680642 on the rows, KL(p_g ‖ p_f) 0.1308120 and 0.5108256
        (False, (0.1438410 + 0.1840321) / 2, (0.1438410 + 0.1840321 + 0.1277064) / 2),
        (True, 0.1840321 / 2, (0.1840321 + 0.0) / 2),  # each row has one teacher only
    ],
)
def test_trusted_losses_by_hand(better, kl, total):
    trust = {"slm": torch.tensor([1.0, 0.5]), "llm": torch.tensor([0.0, 0.25])}
    settings, zero = DistillationConfig(teach_where_better=better), torch.zeros(())
    losses = mutual_losses(zero, zero, Rows(STUDENT, TEACHER, NONE, NONE), settings, trust=trust)
    assert losses.kl.item() == pytest.approx(kl, abs=1e-6)
    assert losses.total.item() == pytest.approx(total, abs=1e-6)


def test_model_that_is_not_trusted_teaches_nothing():
    public = [image(LN3, 0.0, None), image(0.0, LN3, None)]

    def weights(trust):
        slm, llm = Scaled(1.0), Scaled(2.0)
        settings = ServerConfig(epochs=1, batch_size=2, learning_rate=0.1)
        distillation.distil(ModelPair(IMAGES, slm, llm), public, settings, 0, 1, trust)
        return slm.weight.item(), llm.weight.item()

    slm, llm = weights({"slm": [1.0, 1.0], "llm": [0.0, 0.0]})
    assert slm == pytest.approx(1.1, abs=1e-4)  # one step of AdamW toward the LLM
    assert llm == 2.0
    assert weights({"slm": [1.0, 1.0], "llm": [1.0, 1.0]}) == weights(None)
    assert weights(None)[1] == pytest.approx(1.9, abs=1e-4)
