"""Text tasks on causal language models: multiple choice, and completion of a prompt.

A row of `logits` is one answer token, so the prompt never reaches the LM head. When choices are scored, they follow
their prompt one after the other without attending to each other, so that the prompt is read only once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedcollm.config import StatisticsConfig
from fedcollm.errors import UserError
from fedcollm.messages import Score
from fedcollm.modalities.base import UNLABELLED, Modality
from fedcollm.modalities.evidence import Evidence
from fedcollm.modalities.exhibits import Exhibit
from fedcollm.modalities.text.evidence import text_evidence
from fedcollm.modalities.text.examples import TextExample, example_lines, read_examples
from fedcollm.modalities.text.forward import Branched, Tokens, branch, logits_of, pad_left, reads_branches
from fedcollm.modalities.text.models import TextModels
from fedcollm.modalities.text.vocabulary import check_known
from fedcollm.modalities.tokenizers import tokenizer_digest

#: Number of rows of logits that are converted to float32 at once when choices are scored.
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class TextBatch:
    """B sequences of N columns for one forward pass, of which the last R columns reach the head.

    Attributes:
        inputs: `input_ids`, `attention_mask` and `position_ids`, each [B, N] int64, padded on the left.
        rows: [B, R] bool, true where a column predicts a supervised token; P values are true.
        targets: [P] int64, the token that each row should predict, or `UNLABELLED`.
    """

    inputs: dict[str, Tensor]
    rows: Tensor
    targets: Tensor


def picks(example: TextExample, likelihoods: Tensor) -> dict[str, int]:
    """Return the index of the choice that each metric selects.

    `acc` selects the highest log-likelihood, and `acc_norm` the highest log-likelihood per character.

    Args:
        example: an example with C choices.
        likelihoods: [C] log-likelihoods of the choices.
    """
    lengths = torch.tensor([len(choice) for choice in example.choices])
    return {"acc": int(likelihoods.argmax()), "acc_norm": int((likelihoods / lengths).argmax())}


class TextTask(TextModels, Modality):
    """The text modality: answers to prompts, trained on answer tokens and scored by log-likelihood.

    Args:
        name: name of the task, for reports.
        tokenizer: the transformers tokenizer that the models share.
        vocabulary_size: size of the output space that the models share; logits are cut to it.
        context_length: longest sequence that the models accept, in tokens. A longer prompt loses its oldest tokens,
            but never the answer; `truncated` counts such prompts.
        normalized: whether the main metric is length-normalized (`acc_norm` instead of `acc`).
        start: tokens that every prompt begins with even if it is cut, namely those that the tokenizer puts before a
            text (as for Gemma, Llama 2 and OPT), as in lm-evaluation-harness.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        vocabulary_size: int,
        context_length: int,
        normalized: bool = False,
        start: Tokens = (),
    ):
        self.name = name
        self.tokenizer = tokenizer
        self.vocabulary_size = vocabulary_size
        self.context_length = context_length
        self.main_metric: str = "acc_norm" if normalized else "acc"
        self.start = start
        self.options: Mapping[str, Any] = {
            "vocabulary_size": vocabulary_size,
            "context_length": context_length,
            "metric": self.main_metric,
            "start": list(start),
            "tokenizer": getattr(tokenizer, "name_or_path", None),  # tells apart bases that were made of other texts
            "tokenizer_digest": tokenizer_digest(tokenizer),
        }
        self._encoded: dict[tuple[str, str], tuple[Tokens, Tokens]] = {}
        self._truncated: set[str] = set()

    @property
    def truncated(self) -> int:
        """Number of distinct prompts that have been cut so far."""
        return len(self._truncated)

    def encode(self, prompt: str, answer: str) -> tuple[Tokens, Tokens]:
        """Return the tokens of the prompt and of the answer, split as in lm-evaluation-harness.

        One space separates prompt and answer. Both are encoded together, so that the split does not change how the
        whole text is tokenized.

        Raises:
            UserError: the answer alone is longer than the context.
        """
        if (prompt, answer) not in self._encoded:
            self._encode(prompt, [answer])
        return self._encoded[prompt, answer]

    def _encode(self, prompt: str, answers: Sequence[str]) -> None:
        """Store the results of `encode` for several answers, with a single call of the tokenizer."""
        new = [answer for answer in answers if (prompt, answer) not in self._encoded]
        if not new:
            return
        context = prompt.rstrip()
        texts = [context, *(f"{context} {answer}" for answer in new)]
        prefix, *wholes = map(tuple, self.tokenizer(texts, add_special_tokens=False).input_ids)
        for answer, whole in zip(new, wholes, strict=True):
            self._encoded[prompt, answer] = self._split(prompt, answer, prefix, whole)

    def _split(self, prompt: str, answer: str, prefix: Tokens, whole: Tokens) -> tuple[Tokens, Tokens]:
        continuation = whole[len(prefix) :] or whole[-1:]
        check_known(prefix + whole, self.tokenizer, self.vocabulary_size, f"{prompt} {answer}")
        start = self.start or (() if prefix else (self.start_token(),))
        room = self.context_length - len(continuation) + 1  # the last answer token is never an input
        if room < 1:
            tokens, limit = len(continuation), self.context_length
            raise UserError(
                f"an answer of {tokens} tokens does not fit into the models' context of {limit} tokens: "
                f"{answer[:60]!r}. Shorten it, or choose models with a longer context."
            )
        if len(start + prefix) > room:
            self._truncated.add(prompt)
            prefix = prefix[max(len(start + prefix) - room, 0) :]
        return (start + prefix)[-room:], continuation

    def start_token(self) -> int:
        """Return the token that replaces an empty prompt, from which the first token is predicted.

        It is the token for the beginning of a text, or else for its end, as in lm-evaluation-harness.
        """
        special = self.tokenizer
        tokens = (special.bos_token_id, special.eos_token_id, special.pad_token_id)
        return next((token for token in tokens if token is not None), 0)

    def size(self, example: TextExample) -> int:
        """Return the number of tokens of the prompt and the first choice."""
        prompt, answer = self.encode(example.prompt, example.choices[0])
        return len(prompt) + len(answer)

    def lengths(self, example: TextExample) -> dict[str, int]:
        """Return the number of tokens of the prompt, as far as the context holds it, and of the answer."""
        prompt, answer = self.encode(example.prompt, example.choices[example.answer or 0])
        return {"tokens of a prompt": len(prompt), "tokens of an answer": len(answer)}

    def collate(self, examples: Sequence[TextExample]) -> TextBatch:
        """Return a batch whose supervised tokens are those of the correct answers.

        An unlabelled example has one row, for the first answer token, with the target `UNLABELLED`.
        """
        pairs: list[tuple[Tokens, Tokens]] = []
        for example in examples:
            prompt, answer = self.encode(example.prompt, example.choices[example.answer or 0])
            pairs.append((prompt, (UNLABELLED,) if example.answer is None else answer))
        return self._batch(pairs)

    def _batch(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> TextBatch:
        """Return left-padded inputs prompt + answer[:-1]. The column before an answer token predicts it."""
        kept = max(len(answer) for _, answer in pairs)
        rows = torch.zeros(len(pairs), kept, dtype=torch.bool)
        for i, (_, answer) in enumerate(pairs):
            rows[i, kept - len(answer) :] = True
        targets = torch.tensor([token for _, answer in pairs for token in answer])
        return TextBatch(self._padded([prompt + answer[:-1] for prompt, answer in pairs]), rows, targets)

    def _padded(self, sequences: Sequence[Tokens]) -> dict[str, Tensor]:
        return pad_left(sequences, self.tokenizer.pad_token_id or 0)

    def logits(self, model: nn.Module, batch: TextBatch) -> Tensor:
        """Return [P, V] float32 logits, one row per supervised token. The head sees at most the last R columns."""
        return self._rows(model, batch.inputs, batch.rows).float()

    def _rows(self, model: nn.Module, inputs: dict[str, Tensor], rows: Tensor, seen: Tensor | None = None) -> Tensor:
        return logits_of(model, inputs, rows, seen)[:, : self.vocabulary_size]

    def targets(self, batch: TextBatch) -> Tensor:
        """Return [P] int64, the answer tokens, sequence by sequence."""
        return batch.targets

    def evidence(
        self, examples: Sequence[TextExample], features: StatisticsConfig, model: nn.Module | None = None
    ) -> Evidence:
        """Return examples as the rows of a regression; see `text_evidence`."""
        return text_evidence(self, examples, features, model)

    def exhibit(self, example: TextExample) -> Exhibit:
        """Return the prompt and the label."""
        return Exhibit(example.id, example.prompt, example.label or "")

    def notes(self) -> list[str]:
        """Return a sentence on the number of prompts that were cut, if there are any."""
        if not self.truncated:
            return []
        return [f"{self.truncated} prompts were longer than the models' context and lost their oldest tokens"]

    def facts(self) -> dict[str, int]:
        """Return the sizes that depend on both models."""
        return {"vocabulary_size": self.vocabulary_size, "context_length": self.context_length}

    def write_examples(self, examples: Sequence[TextExample]) -> str:
        """Return examples as text with one JSON object per line."""
        return example_lines(examples)

    def read_examples(self, path: Path) -> list[TextExample]:
        """Return the labelled examples of a JSON lines file, gzipped or not.

        Raises:
            UserError: the file can't be read, or a line is not an example.
        """
        return read_examples(path)

    def score(self, model: nn.Module, examples: Sequence[TextExample]) -> Score:
        """Return the accuracy of the most likely choice, by log-likelihood (`acc`) and per character (`acc_norm`).

        As in lm-evaluation-harness, `acc_norm` divides the log-likelihood by the length of the choice in characters,
        and ties go to the first choice. A free completion is correct if every answer token is the most likely one (the
        harness's `is_greedy`).
        """
        sums = {self.main_metric: 0.0, "acc": 0.0, "acc_norm": 0.0}
        outcomes: dict[str, float] = {}
        confusion: dict[tuple[str, str], int] = {}
        for example, (likelihoods, greedy) in zip(examples, self._likelihoods(model, examples), strict=True):
            answer = example.answer or 0
            if len(example.choices) == 1:
                right: dict[str, float] = dict.fromkeys(("acc", "acc_norm"), float(greedy[0]))
            else:
                chosen = picks(example, likelihoods)
                right = {metric: float(choice == answer) for metric, choice in chosen.items()}
                pair = (example.labels[answer], example.labels[chosen["acc"]])
                confusion[pair] = confusion.get(pair, 0) + 1
            sums = {metric: sums[metric] + right[metric] for metric in sums}
            outcomes[example.id] = right[self.main_metric]
        return Score(sums, len(examples), confusion, outcomes)

    def probabilities(self, model: nn.Module, examples: Sequence[TextExample]) -> list[Tensor]:
        """Return [C] probabilities of the choices of each example, as if one of them had to follow the prompt."""
        return [values.softmax(0) for values in self.likelihoods(model, examples)]

    def likelihoods(self, model: nn.Module, examples: Sequence[TextExample]) -> list[Tensor]:
        """Return [C] log-likelihoods of the choices of each example, in nats."""
        return [values for values, _ in self._likelihoods(model, examples)]

    def _likelihoods(self, model: nn.Module, examples: Sequence[TextExample]) -> list[tuple[Tensor, Tensor]]:
        """Return for each example [C] log-likelihoods of its choices, and [C] whether greedy decoding gives them.

        A prompt is read once for all of its choices if the model's attention allows it.
        """
        for example in examples:
            self._encode(example.prompt, example.choices)
        encoded = [[self.encode(example.prompt, text) for text in example.choices] for example in examples]
        longest = max(max(len(p) for p, _ in pairs) + sum(len(a) for _, a in pairs) for pairs in encoded)
        shared = reads_branches(model, longest)
        parts: list[tuple[int, list[int], Tokens, list[Tokens]]] = []  # example, choices, shared prompt, answers
        for index, pairs in enumerate(encoded):
            by_prompt: dict[Any, tuple[int, list[int], Tokens, list[Tokens]]] = {}
            for choice, (prompt, answer) in enumerate(pairs):
                one = by_prompt.setdefault(prompt if shared else choice, (index, [], prompt, []))
                one[1].append(choice)
                one[3].append(answer)
            parts += by_prompt.values()
        values = [torch.empty(len(example.choices)) for example in examples]
        greedy = [torch.empty(len(example.choices), dtype=torch.bool) for example in examples]
        for start in range(0, len(parts), len(examples)):
            some = parts[start : start + len(examples)]
            read = self._read(model, [(prompt, answers) for _, _, prompt, answers in some])
            for (index, choices, _, _), (likelihoods, likeliest) in zip(some, read, strict=True):
                values[index][choices], greedy[index][choices] = likelihoods, likeliest
        return list(zip(values, greedy, strict=True))

    def _read(self, model: nn.Module, branched: Sequence[Branched]) -> list[tuple[Tensor, Tensor]]:
        """Return the same as `_likelihoods`, on the CPU, from one forward pass over prompts with their answers."""
        inputs, seen = self._padded([prompt + sum((a[:-1] for a in answers), ()) for prompt, answers in branched]), None
        if any(len(answers) > 1 and max(map(len, answers)) > 1 for _, answers in branched):
            seen, inputs["position_ids"] = branch(inputs, branched)
        read = [1 + sum(len(answer) - 1 for answer in answers) for _, answers in branched]
        columns = torch.arange(-max(read), 0)
        logits = self._rows(model, inputs, columns >= -torch.tensor(read)[:, None], seen)  # [P, V]
        rows: list[int] = []  # the row that predicts each answer token
        tokens: list[int] = []  # the answer tokens
        first = 0  # row of the last token of the prompt
        for _, answers in branched:
            row = first
            for answer in answers:
                rows += [first, *range(row + 1, row + len(answer))]
                row += len(answer) - 1
                tokens += answer
            first = row + 1
        normal = torch.cat([some.float().logsumexp(-1) for some in torch.split(logits, _ROWS_AT_ONCE)])  # [P]
        chosen, at = logits[rows, tokens].float(), torch.tensor(rows, device=logits.device)
        likelihoods, likeliest = (chosen - normal[at]).cpu(), (chosen == logits.amax(-1)[at].float()).cpu()
        lengths = torch.tensor([len(answer) for _, answers in branched for answer in answers])
        sums = torch.segment_reduce(likelihoods, "sum", lengths=lengths)
        all_likeliest = torch.segment_reduce(likeliest.float(), "min", lengths=lengths).bool()
        counts = [len(answers) for _, answers in branched]
        return list(zip(torch.split(sums, counts), torch.split(all_likeliest, counts), strict=True))
