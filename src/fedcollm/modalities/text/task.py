"""Text tasks on causal language models: multiple choice, and completion of a prompt.

A row of `logits` is one answer token, so the prompt never reaches the LM head. Choices are scored by their
log-likelihood, and free answers by what the model generates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedcollm.config import StatisticsConfig
from fedcollm.messages import Score
from fedcollm.modalities.base import UNLABELLED, Modality
from fedcollm.modalities.evidence import Evidence
from fedcollm.modalities.exhibits import Answer, Exhibit
from fedcollm.modalities.predictions import Prediction, likeliest
from fedcollm.modalities.text.answers import agreement
from fedcollm.modalities.text.encoding import Encoded, Encoder
from fedcollm.modalities.text.evidence import text_evidence
from fedcollm.modalities.text.examples import TextExample, example_lines, read_examples
from fedcollm.modalities.text.forward import Tokens, logits_of, pad_left
from fedcollm.modalities.text.generation import generate
from fedcollm.modalities.text.likelihoods import likelihoods
from fedcollm.modalities.text.models import TextModels
from fedcollm.modalities.text.style import Style
from fedcollm.modalities.tokenizers import tokenizer_digest

#: Metrics of choices and of free answers. The first one is the main one, unless `normalized` or a mixture of both.
_OF_CHOICES, _OF_FREE = ("acc", "acc_norm"), ("exact_match", "f1", "greedy")


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
    """The text modality: answers to prompts, trained on answer tokens.

    Args:
        name: name of the task, for reports.
        tokenizer: the transformers tokenizer that the models share.
        vocabulary_size: size of the output space that the models share; logits are cut to it.
        context_length: longest sequence that the models accept, in tokens. A longer prompt loses its oldest tokens,
            but never the answer; `truncated` counts such prompts.
        normalized: whether the main metric of choices is length-normalized (`acc_norm` instead of `acc`).
        start: tokens that every prompt begins with even if it is cut, namely those that the tokenizer puts before a
            text (as for Gemma, Llama 2 and OPT), as in lm-evaluation-harness.
        style: how prompts and answers become one text, and how free answers are generated.

    Raises:
        UserError: the style is `chat`, and the tokenizer has no chat template.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        vocabulary_size: int,
        context_length: int,
        normalized: bool = False,
        start: Tokens = (),
        style: Style = Style(),
    ):
        self.name = name
        self.tokenizer = tokenizer
        self.vocabulary_size = vocabulary_size
        self.context_length: int = min(context_length, style.max_length or context_length)
        self.main_metric: str = "acc_norm" if normalized else "acc"
        self.start = start
        self.style: Style = style
        self.encoder: Encoder = Encoder(tokenizer, vocabulary_size, self.context_length, start, style)
        self._scored_free = False
        self.options: Mapping[str, Any] = {
            "vocabulary_size": vocabulary_size,
            "context_length": self.context_length,
            "metric": self.main_metric,
            "start": list(start),
            "style": style.to_wire(),
            "tokenizer": getattr(tokenizer, "name_or_path", None),  # tells apart bases that were made of other texts
            "tokenizer_digest": tokenizer_digest(tokenizer),
        }

    @property
    def truncated(self) -> int:
        """Number of distinct prompts that have been cut so far."""
        return self.encoder.truncated

    def encode(self, prompt: str, answer: str) -> tuple[Tokens, Tokens]:
        """Return the tokens of the prompt and of the answer, as `Encoder` splits them.

        Raises:
            UserError: the answer alone is longer than the context, or the chat template refuses the prompt.
        """
        one = self.encoder.encode(prompt, [answer])[0]
        return one.prompt, one.answer

    def encoded(self, example: TextExample) -> Encoded:
        """Return the tokens of an example with its correct answer, or with its first choice if it is unlabelled.

        Raises:
            UserError: as in `encode`.
        """
        return self._encoded(example, (example.choices[example.answer or 0],))[0]

    def _encoded(self, example: TextExample, answers: Sequence[str]) -> list[Encoded]:
        return self.encoder.encode(example.prompt, answers, example.turns, example.has_free_label)

    def start_token(self) -> int:
        """Return the token that replaces an empty prompt, from which the first token is predicted."""
        return self.encoder.start_token()

    def size(self, example: TextExample) -> int:
        """Return the number of tokens of the prompt and the first choice."""
        one = self._encoded(example, example.choices[:1])[0]
        return len(one.prompt) + len(one.answer) + len(one.end)

    def lengths(self, example: TextExample) -> dict[str, int]:
        """Return the number of tokens of the prompt, as far as the context holds it, and of the answer."""
        one = self.encoded(example)
        return {"tokens of a prompt": len(one.prompt), "tokens of an answer": len(one.answer)}

    def collate(self, examples: Sequence[TextExample]) -> TextBatch:
        """Return a batch whose supervised tokens are those of the correct answers.

        A free answer is followed by the token for the end of text or turn, so that a model learns to stop. An
        unlabelled example has one row, for the first answer token, with the target `UNLABELLED`.
        """
        pairs: list[tuple[Tokens, Tokens]] = []
        for example in examples:
            one = self.encoded(example)
            pairs.append((one.prompt, (UNLABELLED,) if example.answer is None else one.answer + one.end))
        return self._batch(pairs)

    def _batch(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> TextBatch:
        """Return left-padded inputs prompt + answer[:-1]. The column before an answer token predicts it."""
        kept = max(len(answer) for _, answer in pairs)
        rows = torch.zeros(len(pairs), kept, dtype=torch.bool)
        for i, (_, answer) in enumerate(pairs):
            rows[i, kept - len(answer) :] = True
        targets = torch.tensor([token for _, answer in pairs for token in answer])
        inputs = pad_left([prompt + answer[:-1] for prompt, answer in pairs], self.encoder.padding)
        return TextBatch(inputs, rows, targets)

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
        """Return the prompt, or the conversation, and the label."""
        return Exhibit(example.id, example.text, example.label or "")

    def notes(self) -> list[str]:
        """Return sentences on prompts that were cut, and on free answers without an end, if there are any."""
        said: list[str] = []
        if self.truncated:
            limit = "the models' context" if self.context_length != self.style.max_length else "task.max_length"
            said.append(f"{self.truncated} prompts were longer than {limit} and lost their oldest tokens")
        if cut := self.encoder.truncated_to_ask:
            said.append(
                f"{cut} prompts lost their oldest tokens when they were asked, to leave room for "
                f"{self.style.max_new_tokens} new tokens (task.format.max_new_tokens), or for half of the context"
            )
        if self.style.learns_end and self.encoder.lacks_end:
            said.append("the tokenizer has no token for the end of text, so the models don't learn where answers end")
        if self._scored_free:
            said.append("free answers count as right if what a model generates is the same text (exact match)")
        return said

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
        """Return the share of right answers, and further metrics.

        Of choices, these are the accuracy of the most likely one by log-likelihood (`acc`) and per character
        (`acc_norm`, which divides by the length of the choice in characters); ties go to the first one, as in
        lm-evaluation-harness. Of free answers, they are the exact match and the token F1 of what the model generates,
        on normalized text; `greedy`, whether every token of the answer is the most likely one (the harness's
        `is_greedy`, without the end); and `loss`, the mean over tokens of the negative log-likelihood in nats, with the
        end. In accuracies, a free answer counts by its exact match.
        """
        read = self._likelihoods(model, examples)
        free = [i for i, example in enumerate(examples) if example.has_free_label]
        total = Score({}, 0)
        if free:
            total += self._score_free(model, [examples[i] for i in free], [read[i] for i in free])
        if len(free) < len(examples):
            chosen = [i for i, example in enumerate(examples) if not example.has_free_label]
            total += self._score_choices([examples[i] for i in chosen], [read[i][0] for i in chosen])
        return total

    def _score_choices(self, examples: Sequence[TextExample], values: Sequence[Tensor]) -> Score:
        sums = dict.fromkeys((self.main_metric, *_OF_CHOICES), 0.0)
        outcomes: dict[str, float] = {}
        confusion: dict[tuple[str, str], int] = {}
        for example, nats in zip(examples, values, strict=True):
            answer, chosen = example.answer or 0, picks(example, nats)
            right = {metric: float(choice == answer) for metric, choice in chosen.items()}
            pair = (example.labels[answer], example.labels[chosen["acc"]])
            confusion[pair] = confusion.get(pair, 0) + 1
            sums = {metric: sums[metric] + right[metric] for metric in sums}
            outcomes[example.id] = right[self.main_metric]
        return Score(sums, len(examples), confusion, outcomes)

    def _score_free(
        self, model: nn.Module, examples: Sequence[TextExample], read: Sequence[tuple[Tensor, Tensor]]
    ) -> Score:
        self._scored_free = True
        sums, tokens = dict.fromkeys((*_OF_FREE, "loss", self.main_metric), 0.0), 0
        outcomes: dict[str, float] = {}
        for example, said, (nats, greedy) in zip(examples, self.generated(model, examples), read, strict=True):
            one = self.encoded(example)
            exact, f1 = agreement(said, example.choices[0])
            right = {"f1": f1, "greedy": float(greedy[0]), "loss": -float(nats.detach()[0])}
            sums = {metric: value + right.get(metric, exact) for metric, value in sums.items()}
            tokens += len(one.answer) + len(one.end)
            outcomes[example.id] = exact
        return Score(sums, len(examples), outcomes=outcomes, counts={"loss": tokens})

    def generated(self, model: nn.Module, examples: Sequence[TextExample]) -> list[str]:
        """Return what a model in evaluation mode answers freely, by greedy decoding.

        It stops at the token for the end of text or turn, after `max_new_tokens`, or where the context is full. A long
        prompt is cut without a look at the right answer, see `Encoder.asked`.
        """
        ones = [self._encoded(example, example.choices[:1])[0] for example in examples]
        stops = {self.tokenizer.eos_token_id, *(one.end[-1] for one in ones if one.end)} - {None}
        asked = [self.encoder.asked(one) for one in ones]
        made = generate(
            model, [prompt for prompt, _ in asked], [most for _, most in asked], stops, self.vocabulary_size
        )
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in made]
        return [text.removeprefix(one.lead.strip()).strip() for text, one in zip(texts, ones, strict=True)]

    def answers(self, model: nn.Module, examples: Sequence[TextExample]) -> list[Answer]:
        """Return what a model in evaluation mode says: the label that it chooses, or the text that it generates."""
        free = [example for example in examples if example.has_free_label]
        said = iter(self.generated(model, free) if free else ())
        rest = iter(super().answers(model, [example for example in examples if not example.has_free_label]))
        return [self._free_answer(e, next(said)) if e.has_free_label else next(rest) for e in examples]

    def predict(self, model: nn.Module, examples: Sequence[TextExample]) -> list[Prediction]:
        """Return the choice that counts in `score` with the probabilities of all, or the text that is generated."""
        free = [example for example in examples if example.has_free_label]
        chosen = [example for example in examples if not example.has_free_label]
        said = iter(self.generated(model, free) if free else ())
        read = iter(self.likelihoods(model, chosen) if chosen else ())
        return [Prediction(next(said)) if e.has_free_label else self._choice(e, next(read)) for e in examples]

    def _choice(self, example: TextExample, nats: Tensor) -> Prediction:
        return likeliest(example.choices, nats.softmax(0), picks(example, nats)[self.main_metric])

    @staticmethod
    def _free_answer(example: TextExample, said: str) -> Answer:
        return Answer(said, agreement(said, example.choices[0])[0] == 1)

    def probabilities(self, model: nn.Module, examples: Sequence[TextExample]) -> list[Tensor]:
        """Return [C] probabilities of the choices of each example, as if one of them had to follow the prompt."""
        return [values.softmax(0) for values in self.likelihoods(model, examples)]

    def likelihoods(self, model: nn.Module, examples: Sequence[TextExample]) -> list[Tensor]:
        """Return [C] log-likelihoods of the choices of each example, in nats."""
        return [values for values, _ in self._likelihoods(model, examples)]

    def _likelihoods(self, model: nn.Module, examples: Sequence[TextExample]) -> list[tuple[Tensor, Tensor]]:
        encoded = [self._encoded(example, example.choices) for example in examples]
        return likelihoods(model, encoded, self._rows, self.encoder.padding)
