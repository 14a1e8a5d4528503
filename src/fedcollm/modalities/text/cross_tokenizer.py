"""Distillation between two models with different tokenizers, over outcomes that both can express.

Both models read the same examples, each in its own tokens. Their rows are compared where both have read exactly the
same bytes of the answer (the chunks of ALM, Minixhofer et al., arXiv 2503.20083). At these rows, the next-token
distribution of each model is summed into shared outcomes:

- each text that is a token of both vocabularies, including the space before a word;
- the end of a free answer, if both tokenizers have one token for it;
- "other", which collects everything else.

A token that only one vocabulary has counts as the longest shared token that it begins with. For example, " cardiology"
counts as " card": a tokenizer that splits the word predicts " card" first, so this is all that the two models can
compare.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fedcollm.config import StatisticsConfig
from fedcollm.errors import UserError
from fedcollm.modalities.base import UNLABELLED, Modality, Rows
from fedcollm.modalities.evidence import Evidence
from fedcollm.modalities.exhibits import Exhibit
from fedcollm.modalities.text.encoding import Encoded
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.forward import Tokens
from fedcollm.modalities.text.models import TextModels
from fedcollm.modalities.text.task import TextBatch, TextTask
from fedcollm.modalities.text.vocabulary import token_texts

#: Stands for the token that ends a free answer; no token has this text.
_END = b"\xff<end>"

#: Lowest probability of an outcome, so that its logarithm stays finite.
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class PairBatch:
    """The same examples in the tokens of each model.

    Attributes:
        slm: the batch for the SLM, with P rows.
        llm: the batch for the LLM, with Q rows.
        slm_rows: [P'] int64, the indices among the P rows at which both models have read the same text.
        llm_rows: [P'] int64, the indices of the matching rows among the Q rows.
    """

    slm: TextBatch
    llm: TextBatch
    slm_rows: Tensor
    llm_rows: Tensor


class TokenizerBridge(TextModels, Modality):
    """The text modality for two models with different tokenizers, whose outputs `align` makes comparable.

    Logits, losses and scores belong to the tasks `of("slm")` and `of("llm")`.

    Args:
        slm: the task with the SLM's tokenizer.
        llm: the task with the LLM's tokenizer.

    Attributes:
        outcomes: the C texts that are tokens of both vocabularies.
        slm_columns: [V] int64, the outcome of each token of the SLM.
        llm_columns: [W] int64, the outcome of each token of the LLM.

    Raises:
        UserError: the two vocabularies have no token in common.
    """

    def __init__(self, slm: TextTask, llm: TextTask):
        self.name: str = slm.name
        self.slm: TextTask = slm
        self.llm: TextTask = llm
        self.options: Mapping[str, Any] = {"slm": slm.options, "llm": llm.options}
        self._texts = [token_texts(task.tokenizer, task.vocabulary_size) for task in (slm, llm)]
        for task, texts in zip((slm, llm), self._texts, strict=True):
            if (end := task.encoder.end_token()) is not None:
                texts[end] = _END
        outcomes, (slm_columns, llm_columns) = common_columns(*self._texts)
        self.outcomes: list[bytes] = outcomes
        self.slm_columns: Tensor = slm_columns
        self.llm_columns: Tensor = llm_columns
        if not outcomes:
            raise UserError(
                "the tokenizers of llm.source and slm.source have no token in common. Choose another pair of models."
            )

    def of(self, role: str) -> TextTask:
        """Return the task with the tokenizer of one role's model."""
        return self.llm if role == "llm" else self.slm

    def part(self, batch: PairBatch, role: str) -> TextBatch:
        """Return the batch in the tokens of one role's model."""
        return batch.llm if role == "llm" else batch.slm

    def size(self, example: TextExample) -> int:
        """Return the number of tokens of the prompt and the first choice, summed over both tokenizers."""
        return self.slm.size(example) + self.llm.size(example)

    def lengths(self, example: TextExample) -> dict[str, int]:
        """Return the number of tokens for each model."""
        pair = {"the SLM": self.slm, "the LLM": self.llm}
        return {f"{what} ({who})": n for who, task in pair.items() for what, n in task.lengths(example).items()}

    def collate(self, examples: Sequence[TextExample]) -> PairBatch:
        """Return one batch per model, and the pairs of rows that can be compared."""
        pairs: list[tuple[int, int]] = []
        first = [0, 0]
        for example in examples:
            one, other = self.slm.encoded(example), self.llm.encoded(example)
            found = [(0, 0)] if example.answer is None else self._aligned(one, other)
            pairs += [(first[0] + i, first[1] + j) for i, j in found]
            first[0] += 1 if example.answer is None else len(one.answer + one.end)
            first[1] += 1 if example.answer is None else len(other.answer + other.end)
        rows = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        return PairBatch(self.slm.collate(examples), self.llm.collate(examples), rows[:, 0], rows[:, 1])

    def _aligned(self, slm: Encoded, llm: Encoded) -> list[tuple[int, int]]:
        """Return the pairs of rows of an answer, and of its end if that is one token for both."""
        ends = [(len(slm.answer), len(llm.answer))] if len(slm.end) == len(llm.end) == 1 else []
        return aligned(slm.answer, llm.answer, *self._texts) + ends

    def align(self, batch: PairBatch, slm_logits: Tensor, llm_logits: Tensor) -> Rows:
        """Return the outcomes of both models on the P' rows that can be compared.

        The C + 1 columns are log-probabilities of the shared outcomes, with "other" last. They serve as logits, since
        their softmax gives the same probabilities again. The target of a row is the outcome of the model's own next
        token, so it differs between the models where they split the text into different shared tokens.

        Args:
            batch: a batch from `collate`.
            slm_logits: [P, V] logits for all rows of `batch.slm`.
            llm_logits: [Q, W] logits for all rows of `batch.llm`.
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
        """Return P', the number of rows at which the models can be compared."""
        return len(batch.slm_rows)

    def logits(self, model: nn.Module, batch: Any) -> NoReturn:
        """Raise an error, because logits need the tokens of one role."""
        raise TypeError("each role has its own tokens: call of(role).logits with part(batch, role)")

    def score(self, model: nn.Module, examples: Sequence[Any]) -> NoReturn:
        """Raise an error, because a score needs the tokens of one role."""
        raise TypeError("each role has its own tokens: call of(role).score")

    def evidence(
        self, examples: Sequence[TextExample], features: StatisticsConfig, model: nn.Module | None = None
    ) -> Evidence:
        """Return examples as the rows of a regression, for which the SLM's tokenizer is used if any."""
        return self.slm.evidence(examples, features, model)

    def exhibit(self, example: TextExample) -> Exhibit:
        """Return the prompt and the label."""
        return self.slm.exhibit(example)

    def notes(self) -> list[str]:
        """Return how many prompts were cut, for the tokenizer with which more of them were."""
        return max(self.slm, self.llm, key=lambda task: task.truncated).notes()

    def facts(self) -> dict[str, int]:
        """Return the sizes that a deployed client needs for its SLM."""
        return self.slm.facts()

    def write_examples(self, examples: Sequence[TextExample]) -> str:
        """Return examples as text with one JSON object per line."""
        return self.slm.write_examples(examples)

    def read_examples(self, path: Path) -> list[TextExample]:
        """Return the labelled examples of a JSON lines file, gzipped or not.

        Raises:
            UserError: the file can't be read, or a line is not an example.
        """
        return self.slm.read_examples(path)


def common_columns(
    slm: Sequence[bytes | None], llm: Sequence[bytes | None]
) -> tuple[list[bytes], tuple[Tensor, Tensor]]:
    """Return the texts that are tokens of both vocabularies, and the outcome that each token counts as.

    Args:
        slm: text of each of the V token ids of the SLM, or None for a token without text.
        llm: text of each of the W token ids of the LLM, likewise.

    Returns:
        The C shared texts, and the outcome of each token, [V] and [W] int64 from 0 to C, where C is "other".

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
    """Return the pairs of rows of an answer before which both models have read the same text.

    Two rows match if the same text remains of the answer.

    Args:
        slm: the answer's tokens for the SLM.
        llm: the answer's tokens for the LLM.
        slm_texts: text of each token id of the SLM.
        llm_texts: text of each token id of the LLM.

    >>> texts = [b" heart", b" disease", b" dis", b"ease"]
    >>> aligned((0, 1), (0, 2, 3), texts, texts)
    [(0, 0), (1, 1)]
    """
    there = {rest: row for row, rest in _rests(llm, llm_texts)}
    return [(row, there[rest]) for row, rest in _rests(slm, slm_texts) if rest in there][::-1]


def _rests(tokens: Tokens, texts: Sequence[bytes | None]) -> list[tuple[int, bytes]]:
    """Return (row, remaining text from this row on), last row first, up to the last token without text."""
    rests: list[tuple[int, bytes]] = []
    rest = b""
    for row in range(len(tokens) - 1, -1, -1):
        text = texts[tokens[row]]
        if text is None:
            break
        rest = text + rest
        rests.append((row, rest))
    return rests


def summed(logits: Tensor, columns: Tensor, size: int) -> Tensor:
    """Return the log-probabilities of outcomes, each of which is the sum of the probabilities of its tokens.

    Args:
        logits: [P, V] logits over tokens.
        columns: [V] int64, the outcome of each token.
        size: number of outcomes.

    Returns:
        [P, size] log-probabilities; an outcome without tokens gets the smallest normal float32 as its probability.
    """
    probabilities = logits.softmax(dim=-1).T  # [V, P]
    sums = probabilities.new_zeros(size, len(logits)).index_add(0, columns.to(logits.device), probabilities)
    return sums.T.clamp(min=_TINY).log()


def _outcome(targets: Tensor, columns: Tensor) -> Tensor:
    """Return the outcomes of target tokens, leaving `UNLABELLED` unchanged."""
    return torch.where(targets == UNLABELLED, targets, columns[targets.clamp(min=0)])
