"""How prompts and answers become one text, and how free answers are generated."""

from dataclasses import asdict, dataclass
from typing import Any

from fedcollm.config import TaskConfig


@dataclass(frozen=True)
class Style:
    """How prompts and answers become one text, and how free answers are generated.

    Attributes:
        joiner: what stands between a prompt and its answer, unless the prompt ends with white space.
        chat: whether prompts are put into the chat template of the tokenizer. A conversation always is.
        max_new_tokens: longest free answer that a model generates, in tokens.
        max_length: longest sequence in tokens, if it is to be shorter than the models' context.
        learns_end: whether free answers end with the token for the end of text. It is false for pieces of a text.
    """

    joiner: str = " "
    chat: bool = False
    max_new_tokens: int = 64
    max_length: int | None = None
    learns_end: bool = True

    def to_wire(self) -> dict[str, Any]:
        """Return the style as plain values, for cache keys."""
        return asdict(self)


def style_of(task: TaskConfig) -> Style:
    """Return the style that the section `task` asks for: its key `max_length`, and those of `format`."""
    form = task.format
    if form is None:
        return Style(max_length=task.max_length)
    chat = form.chat or form.messages is not None
    return Style(form.joiner, chat, form.max_new_tokens, task.max_length)
