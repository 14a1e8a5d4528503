"""Text: multiple choice and prompt -> completion, on causal language models.

A row of `logits` is one answer token: the prompt and the padding never reach the LM head. Inputs are
padded on the left, so that every answer ends at the last column and the head can be asked for the
last few columns only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedcollm.errors import UserError
from fedcollm.messages import Score
from fedcollm.tasks.base import UNLABELLED


@dataclass(frozen=True)
class TextExample:
    """A prompt and its possible continuations.

    Attributes:
        id: unique within its file.
        prompt: text before the answer.
        choices: continuations, without the space that joins them to the prompt; free completion has
            one, the answer itself.
        answer: index of the right choice, or None if unlabelled.
        labels: short names of the choices, for partitions and confusion tables.
        group: natural client id, where the data has one.
    """

    id: str
    prompt: str
    choices: tuple[str, ...]
    answer: int | None
    labels: tuple[str, ...]
    group: str | None = None

    @property
    def label(self) -> str | None:
        """Name of the right choice."""
        return None if self.answer is None else self.labels[self.answer]

    @property
    def content(self) -> str:
        """The prompt, case and spacing folded."""
        return " ".join(self.prompt.casefold().split())

    def without_label(self) -> "TextExample":
        """The same example, its answer forgotten."""
        return replace(self, answer=None)


@dataclass(frozen=True)
class TextBatch:
    """Sequences for one forward pass; B sequences of N columns, of which the last R reach the head.

    Attributes:
        inputs: `input_ids`, `attention_mask` and `position_ids`, each [B, N] int64, padded on the left.
        rows: [B, R] bool, true where a column predicts a supervised token; P of them are true.
        targets: [P] int64, the token that each row should predict, or `UNLABELLED`.
    """

    inputs: dict[str, Tensor]
    rows: Tensor
    targets: Tensor


class TextTask:
    """Answers to prompts, trained on answer tokens and scored by their log-likelihood.

    Args:
        name: name of the task, for reports.
        tokenizer: a transformers tokenizer, common to both models.
        vocabulary_size: size of the output space common to both models; logits are cut to it.
        context_length: longest sequence that both models take, in tokens. Longer prompts lose their
            oldest tokens, never the answer; `truncated` counts the examples.
        normalised: score by length-normalised log-likelihood (`acc_norm`) instead of `acc`.
    """

    metric = "accuracy"

    def __init__(self, name: str, tokenizer: Any, vocabulary_size: int, context_length: int, normalised: bool = False):
        self.name = name
        self.tokenizer = tokenizer
        self.vocabulary_size = vocabulary_size
        self.context_length = context_length
        self.main_metric = "acc_norm" if normalised else "acc"
        self._encoded: dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._truncated: set[str] = set()

    @property
    def truncated(self) -> int:
        """Number of distinct prompts that were cut so far."""
        return len(self._truncated)

    def encode(self, prompt: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Prompt and answer tokens, split as lm-evaluation-harness does.

        The answer starts with one space; both are encoded together, so that the split never changes
        how the text as a whole is cut into tokens.

        Raises:
            UserError: the answer alone is longer than the context.
        """
        key = (prompt, answer)
        if key not in self._encoded:
            context = prompt.rstrip()
            whole = self._ids(context + " " + answer)
            prefix = self._ids(context)
            continuation = whole[len(prefix) :] or whole[-1:]
            prefix = prefix or [self._start()]
            room = self.context_length - len(continuation) + 1  # the last answer token is never an input
            if room < 1:
                tokens, limit = len(continuation), self.context_length
                raise UserError(
                    f"an answer of {tokens} tokens does not fit the models' context of {limit}: {answer[:60]!r}. "
                    "Shorten it, or take models with a longer context."
                )
            if len(prefix) > room:
                self._truncated.add(prompt)
                prefix = prefix[-room:]
            self._encoded[key] = tuple(prefix), tuple(continuation)
        return self._encoded[key]

    def _start(self) -> int:
        """What an empty prompt is replaced by, as lm-evaluation-harness does: a token to predict the first one from."""
        special = self.tokenizer
        tokens = (special.bos_token_id, special.eos_token_id, special.pad_token_id)
        return next((token for token in tokens if token is not None), 0)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def size(self, example: TextExample) -> int:
        """Tokens of the prompt and the first choice."""
        prompt, answer = self.encode(example.prompt, example.choices[0])
        return len(prompt) + len(answer)

    def collate(self, examples: Sequence[TextExample]) -> TextBatch:
        """Sequences whose supervised tokens are those of the right answer.

        An unlabelled example has one row, the first answer token, whose target is `UNLABELLED`.
        """
        pairs = []
        for example in examples:
            prompt, answer = self.encode(example.prompt, example.choices[example.answer or 0])
            pairs.append((prompt, (UNLABELLED,) if example.answer is None else answer))
        return self._batch(pairs)

    def _batch(self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> TextBatch:
        """Left-padded inputs prompt + answer[:-1]; each answer token is predicted one column before it."""
        width = max(len(prompt) + len(answer) - 1 for prompt, answer in pairs)
        kept = max(len(answer) for _, answer in pairs)
        pad = self.tokenizer.pad_token_id or 0
        tokens = torch.full((len(pairs), width), pad)
        mask = torch.zeros_like(tokens)
        rows = torch.zeros(len(pairs), kept, dtype=torch.bool)
        for i, (prompt, answer) in enumerate(pairs):
            sequence = prompt + answer[:-1]
            tokens[i, width - len(sequence) :] = torch.tensor(sequence)
            mask[i, width - len(sequence) :] = 1
            rows[i, kept - len(answer) :] = True
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        targets = torch.tensor([token for _, answer in pairs for token in answer])
        return TextBatch({"input_ids": tokens, "attention_mask": mask, "position_ids": positions}, rows, targets)

    def logits(self, model: nn.Module, batch: TextBatch) -> Tensor:
        """[P, V]: the head is applied to the last R columns only, and rows are picked from those."""
        device = next(model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
        # as indices, not as a number: a slice is not contiguous, and torch would copy the head once a sequence
        width, kept = batch.inputs["input_ids"].shape[1], batch.rows.shape[1]
        columns = torch.arange(width - kept, width, device=device)
        output = model(**inputs, use_cache=False, logits_to_keep=columns)
        return output.logits[batch.rows.to(device)][:, : self.vocabulary_size].float()

    def targets(self, batch: TextBatch) -> Tensor:
        """[P] int64: the answer tokens, sequence by sequence."""
        return batch.targets

    def score(self, model: nn.Module, examples: Sequence[TextExample]) -> Score:
        """Accuracy of the choice with the highest log-likelihood, raw (`acc`) and a character (`acc_norm`).

        As lm-evaluation-harness: `acc_norm` divides the log-likelihood by the choice's length in
        characters, and the first of equal choices wins. Free completions are right if every answer
        token is the most likely one (its `is_greedy`).
        """
        sums = {self.main_metric: 0.0, "acc": 0.0, "acc_norm": 0.0}
        confusion: dict[tuple[str, str], int] = {}
        for example, (likelihoods, greedy) in zip(examples, self._likelihoods(model, examples), strict=True):
            answer = example.answer or 0
            if len(example.choices) == 1:
                sums["acc"] += float(greedy[0])
                sums["acc_norm"] += float(greedy[0])
                continue
            lengths = torch.tensor([len(choice) for choice in example.choices])
            best = int(likelihoods.argmax())
            sums["acc"] += best == answer
            sums["acc_norm"] += int((likelihoods / lengths).argmax()) == answer
            pair = (example.labels[answer], example.labels[best])
            confusion[pair] = confusion.get(pair, 0) + 1
        return Score(sums, len(examples), confusion)

    def _likelihoods(self, model: nn.Module, examples: Sequence[TextExample]) -> list[tuple[Tensor, Tensor]]:
        """Each example's choices: log-likelihood [C], and whether greedy decoding would give it [C].

        Choices of one token each are read off one row of their common prompt; others take a sequence each.
        """
        sequences: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        columns: list[list[tuple[int, ...]]] = []  # for each sequence, the answers to read off its rows
        owners: list[int] = []
        for index, example in enumerate(examples):
            encoded = [self.encode(example.prompt, choice) for choice in example.choices]
            if all(prompt == encoded[0][0] and len(answer) == 1 for prompt, answer in encoded):
                sequences.append(encoded[0])
                columns.append([answer for _, answer in encoded])
                owners.append(index)
            else:
                sequences += encoded
                columns += [[answer] for _, answer in encoded]
                owners += [index] * len(encoded)
        values: list[list[Tensor]] = [[] for _ in examples]
        greedy: list[list[Tensor]] = [[] for _ in examples]
        for start in range(0, len(sequences), len(examples)):
            part = slice(start, start + len(examples))
            for owner, answers, rows in zip(
                owners[part], columns[part], self._rows(model, sequences[part]), strict=True
            ):
                chosen = rows[torch.arange(len(rows)), torch.tensor(answers)]  # [answers, tokens of each]
                values[owner].append(chosen.sum(-1))
                greedy[owner].append((chosen == rows.amax(-1)).all(-1))
        return [(torch.cat(v), torch.cat(g)) for v, g in zip(values, greedy, strict=True)]

    def _rows(self, model: nn.Module, sequences: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Sequence[Tensor]:
        """Log-probabilities [answer tokens, V] of each sequence's answer rows, on the CPU."""
        logs = self.logits(model, self._batch(sequences)).log_softmax(-1).cpu()
        return logs.split([len(answer) for _, answer in sequences])
