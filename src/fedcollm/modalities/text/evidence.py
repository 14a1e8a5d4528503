"""Prompts and choices as the rows of a regression: hashed n-grams, or the last hidden state of a language model."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedcollm.config import StatisticsConfig
from fedcollm.errors import UserError
from fedcollm.modalities.evidence import Evidence, head_inputs, joined, normalized, places, with_choices, with_labels
from fedcollm.modalities.text.examples import TextExample, listed_choices
from fedcollm.modalities.text.forward import Tokens, logits_of, pad_left
from fedcollm.models.adapters import without_adapter

if TYPE_CHECKING:
    from fedcollm.modalities.text.task import TextTask

#: Texts per forward pass.
_TEXTS_AT_ONCE = 32

#: Weight of the pairs of a prompt word and a choice word beside the n-grams of the choice, both with a norm of 1. With
#: equal weights, four question answering tasks were 1 to 5 points lower.
_PAIR_WEIGHT = 0.25

#: A prompt and one of its choices; the choice is empty if all examples share their labels.
Text = tuple[str, str]


def text_evidence(
    task: "TextTask", examples: Sequence[TextExample], features: StatisticsConfig, model: nn.Module | None
) -> Evidence:
    """Return one row per example if all share their labels, and otherwise one row per choice.

    Args:
        task: the task, which has the tokenizer.
        examples: the examples.
        features: the kind of features.
        model: the causal language model, for the features `slm`.

    Raises:
        UserError: an example has only one choice, because its answer is free, or not all examples share their labels.
    """
    _check(task.name, examples)
    constant, answers = features.features == "constant", [example.answer for example in examples]
    if examples[0].shares_labels:
        texts: list[Text] = [(example.text, "") for example in examples]
        rows = torch.ones(len(texts), 1) if constant else _FEATURES[features.features](task, texts, features, model)
        return with_labels(rows, examples[0].labels, answers)
    counts = [len(example.choices) for example in examples]
    texts = [(example.text, choice) for example in examples for choice in choice_texts(example)]
    rows = places(counts) if constant else _FEATURES[features.features](task, texts, features, model)
    return with_choices(rows, counts, answers)


def _check(name: str, examples: Sequence[TextExample]) -> None:
    if free := next((example for example in examples if example.has_free_label), None):
        raise UserError(
            f"control: example {free.id!r} of {name} has a free answer, and a control in closed form needs choices. "
            "Leave out control, and the methods majority and closed_form."
        )
    first = examples[0]
    shared = first.shares_labels
    odd = (e for e in examples if e.shares_labels != shared or (shared and e.labels != first.labels))
    if example := next(odd, None):
        raise UserError(
            f"control: the labels of example {example.id!r} of {name} are not those of {first.id!r}. Give all examples "
            "the same choices, or give all of them choices of their own, with the labels A, B, C, ..."
        )


def choice_texts(example: TextExample) -> tuple[str, ...]:
    r"""Return the texts of an example's own choices. If these are letters, the texts are those listed in the prompt.

    >>> choice_texts(TextExample("1", "Roses are\nA. red\nB. blue", ("A", "B"), 0, ("A", "B"), own_choices=True))
    ('red', 'blue')
    """
    listed = listed_choices(example.prompt, example.labels) if example.choices == example.labels else None
    return listed or example.choices


def _ngrams(task: "TextTask", texts: Sequence[Text], features: StatisticsConfig, model: nn.Module | None) -> Tensor:
    """Return [R, columns], the signed counts of hashed n-grams, with an L2 norm of 1.

    They are the character 3- to 5-grams within the words of a prompt. A choice of an example's own has its own n-grams
    and the pairs of a word of the prompt and a word of the choice: the prompt's n-grams would be the same for all
    choices of an example, so that they could not tell which one is right.
    """
    from sklearn.feature_extraction import text  # pyright: ignore[reportMissingTypeStubs] # takes 100 MB of memory

    hashing: Any = text.HashingVectorizer
    vectorizer = hashing(n_features=features.columns, analyzer="char_wb", ngram_range=(3, 5), dtype=np.float32)
    prompts, choices = ([text[i] for text in texts] for i in (0, 1))
    if not any(choices):
        return torch.as_tensor(vectorizer.transform([f"{prompt} " for prompt in prompts]).toarray())
    pairing = hashing(n_features=features.columns, analyzer=_word_pairs, dtype=np.float32)
    own, pairs = vectorizer.transform(choices), pairing.transform(texts)
    return normalized(torch.as_tensor((own + _PAIR_WEIGHT * pairs).toarray()))


def _word_pairs(text: Text) -> list[str]:
    r"""Return each pair of a distinct word of the prompt and one of the choice, with a tab between them.

    >>> _word_pairs(("A cat, a dog?", "Animals"))
    ['a\tanimals', 'cat\tanimals', 'dog\tanimals']
    """
    first, second = (dict.fromkeys(re.findall(r"\w+", part.lower())) for part in text)
    return [f"{one}\t{other}" for one in first for other in second]


def _hidden(task: "TextTask", texts: Sequence[Text], features: StatisticsConfig, model: nn.Module | None) -> Tensor:
    """Return [R, d], the last hidden state at the last token of each text, with an L2 norm of 1."""
    if model is None:
        raise ValueError("the features slm need a model")
    head: Any = cast(Any, model).get_output_embeddings()
    sequences = [_tokens(task, *text) for text in texts]
    batches = [sequences[i : i + _TEXTS_AT_ONCE] for i in range(0, len(sequences), _TEXTS_AT_ONCE)]
    parts: list[Tensor] = []
    with without_adapter(model):
        for batch in batches:
            inputs, rows = pad_left(batch, task.encoder.padding), torch.ones(len(batch), 1).bool()
            parts.append(head_inputs(head, partial(logits_of, model, inputs, rows)))
    return normalized(torch.cat(parts))


def _tokens(task: "TextTask", prompt: str, choice: str) -> Tokens:
    """Return the tokens of a prompt and, unless it is empty, of a choice, cut to the context."""
    if not choice:
        return task.encoder.text_tokens(prompt)
    one = task.encoder.encode(prompt.rstrip(), [choice])[0]
    return (one.prompt + one.answer)[-task.context_length :]


_Features = Callable[["TextTask", Sequence[Text], StatisticsConfig, nn.Module | None], Tensor]


def _both(task: "TextTask", texts: Sequence[Text], features: StatisticsConfig, model: nn.Module | None) -> Tensor:
    return joined(_ngrams(task, texts, features, model), _hidden(task, texts, features, model))


_FEATURES: Mapping[str, _Features] = {"ngrams": _ngrams, "slm": _hidden, "ngrams_slm": _both}
