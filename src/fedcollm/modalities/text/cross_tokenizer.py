"""A pair of models with different tokenizers: what both say about the same text, over outcomes that they share.

Both read the same examples, each in its own tokens. Their rows are compared where both have read exactly the same part
of the answer, byte for byte (the chunks of ALM, Minixhofer et al., arXiv 2503.20083). There, both next-token
distributions are summed into common outcomes:

- a text that is a token of both vocabularies, the space before a word included;
- "another one": whatever is in neither of these.

A token that only one vocabulary has counts as the longest common one that it begins with: a model that says
" cardiology" says " card" too, and that is all that the other one, which cuts the word in two, can say of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fedcollm.errors import UserError
from fedcollm.modalities.base import UNLABELLED, Modality, Rows
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.forward import Tokens
from fedcollm.modalities.text.models import TextModels
from fedcollm.modalities.text.task import TextBatch, TextTask
from fedcollm.modalities.text.vocabulary import token_texts

#: Lowest probability of an outcome: its logarithm stays finite.
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class PairBatch:
    """The same examples in each model's tokens.

    Attributes:
        slm: for the SLM, with P rows.
        llm: for the LLM, with Q rows.
        slm_rows: [P'] int64, those of the P rows at which both have read the same text.
        llm_rows: [P'] int64, the same ones among the Q.
    """

    slm: TextBatch
    llm: TextBatch
    slm_rows: Tensor
    llm_rows: Tensor


class TokenizerBridge(TextModels, Modality):
    """Text for two models with different tokenizers: each reads it in its own tokens, and `align` compares them.

    Logits, losses and scores are those of `of("slm")` and `of("llm")`.

    Args:
        slm: the task with the SLM's tokenizer.
        llm: the task with the LLM's.

    Raises:
        UserError: the two vocabularies have no text in common.
    """

    def __init__(self, slm: TextTask, llm: TextTask):
        self.name = slm.name
        self.slm, self.llm = slm, llm
        self.options = {"slm": slm.options, "llm": llm.options}
        self._texts = [token_texts(task.tokenizer, task.vocabulary_size) for task in (slm, llm)]
        self.outcomes, (self.slm_columns, self.llm_columns) = common_columns(*self._texts)
        if not self.outcomes:
            raise UserError("the tokenizers of llm.source and slm.source have no token in common. Choose another pair.")

    def of(self, role: str) -> TextTask:
        """Return the task with the tokenizer of a role's model."""
        return self.llm if role == "llm" else self.slm

    def part(self, batch: PairBatch, role: str) -> TextBatch:
        """Return the batch in the tokens of a role's model."""
        return batch.llm if role == "llm" else batch.slm

    def size(self, example: TextExample) -> int:
        """Return the number of tokens of the prompt and the first choice, of both models together."""
        return self.slm.size(example) + self.llm.size(example)

    def collate(self, examples: Sequence[TextExample]) -> PairBatch:
        """Return one batch per model, and which of their rows belong together."""
        pairs: list[tuple[int, int]] = []
        first = [0, 0]
        for example in examples:
            one, other = (self._answer(task, example) for task in (self.slm, self.llm))
            found = [(0, 0)] if example.answer is None else aligned(one, other, *self._texts)
            pairs += [(first[0] + i, first[1] + j) for i, j in found]
            first[0] += len(one)
            first[1] += len(other)
        rows = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        return PairBatch(self.slm.collate(examples), self.llm.collate(examples), rows[:, 0], rows[:, 1])

    @staticmethod
    def _answer(task: TextTask, example: TextExample) -> Tokens:
        """Return the tokens that have a row each in a batch of this task."""
        if example.answer is None:
            return (UNLABELLED,)
        return task.encode(example.prompt, example.choices[example.answer])[1]

    def align(self, batch: PairBatch, slm_logits: Tensor, llm_logits: Tensor) -> Rows:
        """Return both models' outcomes on the P' rows that they share.

        The C + 1 columns are log-probabilities of the common outcomes, "another one" last; log-probabilities are
        logits of themselves. The target of a row is the outcome of the model's own next token: "another one" where
        the next tokens begin with different common texts.

        Args:
            batch: as `collate` made it.
            slm_logits: [P, V], of all rows of `batch.slm`.
            llm_logits: [Q, W], of all rows of `batch.llm`.
        """
        size = len(self.outcomes) + 1
        sides = (
            (slm_logits, batch.slm_rows, self.slm_columns, batch.slm.targets),
            (llm_logits, batch.llm_rows, self.llm_columns, batch.llm.targets),
        )
        values = [summed(logits[rows.to(logits.device)], columns, size) for logits, rows, columns, _ in sides]
        right = [_outcome(targets[rows], columns) for _, rows, columns, targets in sides]
        return Rows(values[0], values[1], right[0].to(values[0].device), right[1].to(values[1].device))

    def rows(self, batch: PairBatch) -> int:
        """Return P', the number of rows that the models share."""
        return len(batch.slm_rows)

    def logits(self, model: nn.Module, batch: Any) -> NoReturn:
        """Refuse: a row of logits belongs to one role's model."""
        raise TypeError("each role has its own tokens: ask of(role), with part(batch, role)")

    def score(self, model: nn.Module, examples: Sequence[Any]) -> NoReturn:
        """Refuse: a score belongs to one role's model."""
        raise TypeError("each role has its own tokens: ask of(role)")

    def show(self, example: TextExample, prediction: str | None = None) -> str:
        """Return prompt, answer and prediction on one line."""
        return self.slm.show(example, prediction)

    def notes(self) -> list[str]:
        """Return how many prompts were cut, in the tokens of the model that cut more of them."""
        return max(self.slm, self.llm, key=lambda task: task.truncated).notes()

    def facts(self) -> dict[str, int]:
        """Return what a client's SLM needs."""
        return self.slm.facts()

    def write_examples(self, examples: Sequence[TextExample]) -> str:
        """Return one JSON object per line."""
        return self.slm.write_examples(examples)

    def read_examples(self, path: Path) -> list[TextExample]:
        """Return the labelled examples of a file of JSON lines, gzipped or not.

        Raises:
            UserError: the file can't be read, or a line is not an example.
        """
        return self.slm.read_examples(path)


def common_columns(
    slm: Sequence[bytes | None], llm: Sequence[bytes | None]
) -> tuple[list[bytes], tuple[Tensor, Tensor]]:
    """Return the texts that are tokens of both vocabularies, and the outcome that each token counts as.

    Args:
        slm: text of each token id, None where it has none.
        llm: likewise.

    Returns:
        The C common texts, and [V] and [W] int64 with values from 0 to C; C is "another one".

    >>> texts, (slm, llm) = common_columns([None, b" card", b" cat"], [b" cat", b" cardiology", b" card", b" dog"])
    >>> texts, slm.tolist(), llm.tolist()
    ([b' card', b' cat'], [2, 0, 1], [1, 0, 0, 2])
    """
    texts = sorted({text for text in slm if text} & {text for text in llm if text})
    known = {text: column for column, text in enumerate(texts)}

    def column(text: bytes | None) -> int:
        beginnings = (text[:length] for length in range(len(text), 0, -1)) if text else ()
        return next((known[part] for part in beginnings if part in known), len(texts))

    return texts, (torch.tensor([column(text) for text in slm]), torch.tensor([column(text) for text in llm]))


def aligned(
    slm: Tokens, llm: Tokens, slm_texts: Sequence[bytes | None], llm_texts: Sequence[bytes | None]
) -> list[tuple[int, int]]:
    """Return pairs of rows of an answer before which both models have read the same text: the same is left of it.

    Args:
        slm: tokens of the answer.
        llm: those of the other tokenizer.
        slm_texts: text of each token id.
        llm_texts: likewise.

    >>> texts = [b" heart", b" disease", b" dis", b"ease"]
    >>> aligned((0, 1), (0, 2, 3), texts, texts)
    [(0, 0), (1, 1)]
    """
    there = {rest: row for row, rest in _rests(llm, llm_texts)}
    return [(row, there[rest]) for row, rest in _rests(slm, slm_texts) if rest in there][::-1]


def _rests(tokens: Tokens, texts: Sequence[bytes | None]) -> list[tuple[int, bytes]]:
    """Return the text that is left from each row on, the last row first, as far back as all of it is known."""
    rests, rest = [], b""
    for row in range(len(tokens) - 1, -1, -1):
        text = texts[tokens[row]]
        if text is None:
            break
        rest = text + rest
        rests.append((row, rest))
    return rests


def summed(logits: Tensor, columns: Tensor, size: int) -> Tensor:
    """Return log-probabilities of sums of tokens, each summed from probabilities: none is 1 minus the others.

    Args:
        logits: [P, V].
        columns: [V] int64, the outcome of each token.
        size: number of outcomes.

    Returns:
        [P, size]; an outcome without a token has the lowest probability that float32 can hold.
    """
    probabilities = logits.softmax(dim=-1).T  # [V, P]
    sums = probabilities.new_zeros(size, len(logits)).index_add(0, columns.to(logits.device), probabilities)
    return sums.T.clamp(min=_TINY).log()


def _outcome(targets: Tensor, columns: Tensor) -> Tensor:
    """Return the outcomes of tokens; `UNLABELLED` stays what it is."""
    return torch.where(targets == UNLABELLED, targets, columns[targets.clamp(min=0)])


# The former name, until distillation reads `Rows`.
SharedOutcomes = tuple
