"""Augmentations of prompts: a function each, listed in `TEXT`.

A conversation is changed in its last turn, the one that is answered.
"""

import copy
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fedcollm.data.augmentation.draws import Draws
from fedcollm.data.augmentation.listings import find_listing
from fedcollm.data.sources.icd10 import inclusion_terms
from fedcollm.errors import UserError
from fedcollm.modalities.text.examples import TextExample
from fedcollm.modalities.text.task import TextBatch, TextTask

#: Share of the words that `word_dropout` leaves out, and the most that it does.
_DROPPED, _MOST_DROPPED = 0.1, 0.5

#: A word that can be left out: not the first of its line, and with a space before it.
_WORD = re.compile(r"(?<![ \t])[ \t]+[\w'’-]+(?=[\s.,;:!?)\]]|$)")

Change = Callable[[TextExample, float, random.Random], TextExample]


def synonyms(example: TextExample) -> tuple[str, ...]:
    """Return other names of the diagnosis of an example of the task icd10; none if the classification has none."""
    return inclusion_terms().get(example.id, ())


def paraphrase(example: TextExample, strength: float, draw: random.Random) -> TextExample:
    """Return an example with another of its prompts, if it has some."""
    return replace(example, prompt=draw.choice(example.paraphrases)) if example.paraphrases else example


def synonym(example: TextExample, strength: float, draw: random.Random) -> TextExample:
    """Return an example of the task icd10 with another name of the diagnosis, if there is one."""
    terms = synonyms(example)
    return replace(example, prompt=f"{draw.choice(terms)}:") if terms else example


def choice_order(example: TextExample, strength: float, draw: random.Random) -> TextExample:
    """Return an example whose prompt lists its choices in another order; the answer follows.

    Where letters stand for the choices, the letters stay in their places and the answer is another letter. An example
    whose prompt lists no choices stays as it is: a model is not told of them, so their order means nothing.
    """
    text = question(example)
    listing = find_listing(text, example)
    if listing is None:
        return example
    order = list(range(len(listing.spans)))
    draw.shuffle(order)  # position -> choice whose text it gets
    said = [text[start:end] for start, end in listing.spans]
    for place in sorted(range(len(order)), key=lambda i: listing.spans[i], reverse=True):
        start, end = listing.spans[place]
        text = text[:start] + said[order[place]] + text[end:]
    changed = _with_question(example, text)
    if not listing.by_label or example.answer is None:
        return changed
    return changed.with_answer(order.index(example.answer))


def word_dropout(example: TextExample, strength: float, draw: random.Random) -> TextExample:
    """Return an example without some words of its prompt.

    The first word of a line stays, and so do choices that are listed. Words have spaces between them, so that languages
    without any stay as they are.
    """
    share, text = min(_DROPPED * strength, _MOST_DROPPED), question(example)
    listing = find_listing(text, example)
    spans = listing.spans if listing else ()

    def kept(match: re.Match[str]) -> str:
        is_listed = any(start <= match.end() and match.start() <= end for start, end in spans)
        return match[0] if draw.random() >= share or is_listed else ""

    return _with_question(example, _WORD.sub(kept, text))


#: Name to function, in the order in which they are applied.
TEXT: Mapping[str, Change] = {
    "paraphrase": paraphrase,
    "synonym": synonym,
    "choice_order": choice_order,
    "word_dropout": word_dropout,
}


def question(example: TextExample) -> str:
    """Return the text that is answered: the prompt, or the last turn of a conversation."""
    return example.turns[-1][1] if example.turns else example.prompt


def _with_question(example: TextExample, text: str) -> TextExample:
    if not example.turns:
        return replace(example, prompt=text)
    *before, (role, _) = example.turns
    return replace(example, turns=(*before, (role, text)))


def changed(example: TextExample, draws: Draws) -> TextExample:
    """Return an example as it is in one epoch."""
    for name, draw in draws.of(example.content, TEXT):
        example = TEXT[name](example, draws.strength, draw)
    return example


class TextBatches:
    """Makes batches of text examples as they are in one epoch.

    Args:
        task: the modality.
        draws: the augmentations of the epoch.
    """

    def __init__(self, task: TextTask, draws: Draws):
        self._task = task
        self._draws = draws
        self._once = copy.copy(task)  # prompts of one epoch are not kept with those of the data
        self._once.encoder = task.encoder.emptied()

    def size(self, example: TextExample) -> int:
        """Return the number of tokens of the changed prompt and the first choice."""
        self._task.size(example)  # counts the prompt, as it is in the data, if it is cut
        return self._once.size(self._changed(example))

    def collate(self, examples: Sequence[TextExample]) -> TextBatch:
        """Return a batch of changed examples."""
        return self._once.collate([self._changed(example) for example in examples])

    def _changed(self, example: TextExample) -> TextExample:
        """Return the changed example; one that the tokenizer or its template then refuses stays as it is."""
        made = changed(example, self._draws)
        try:
            self._once.encoded(made)
        except UserError:
            return example
        return made
