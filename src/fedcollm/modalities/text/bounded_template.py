"""Chat templates that can't run forever: a template is a program of somebody else.

The sandbox of transformers bounds a single range, and no nested ones. So a template gets a counter: each pass through a
loop, a macro or a block counts as one step, and at the limit the template fails. Nothing else of its output changes.
"""

import functools
import hashlib
import re
from typing import Any

import jinja2

#: Most steps of a template for one conversation. A conversation of a thousand turns takes a few thousand.
MOST_STEPS = 100_000

#: Tags whose body can run more than once.
_REPEATED = ("for", "macro", "block", "call")


#: White space before the first tag, which transformers leaves out because the tag begins a line.
_BEFORE_TAG = re.compile(r"[ \t]+(?=\{[%#](?!\+))")


class PowerError(Exception):
    """A template computes a power of numbers."""


@functools.lru_cache(maxsize=16)
def bounded(template: str) -> tuple[str, str]:
    """Return a template that fails after `MOST_STEPS` steps, and a word that is in the message of that failure.

    Args:
        template: the source of a chat template.

    Raises:
        PowerError: it computes a power of numbers, whose time no number of steps bounds.
        TemplateSyntaxError: it is no template.
    """
    name = f"steps_{hashlib.sha256(template.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"  # unknown to itself
    count = (
        f"%}}{{% set {name}.taken = {name}.taken + 1 %}}{{% if {name}.taken > {MOST_STEPS} %}}{{{{ (1).{name}() }}}}"
        "{% endif "
    )
    parts = [f"{{% set {name} = namespace(taken=0) %}}{{{{ '' }}}}"]  # after a tag, a line end would be left out
    template = template[found.end() :] if (found := _BEFORE_TAG.match(template)) else template
    tag = ""
    for kind, text in _tokens(template):
        if kind == "operator" and text == "**":
            raise PowerError
        if kind == "block_begin":
            tag = "?"
        elif kind == "name" and tag == "?":
            tag = text
        elif kind == "block_end" and tag in _REPEATED:
            parts.append(count)  # and the end of the tag, with its control of white space
        parts.append(text)
    return "".join(parts), name


def _tokens(template: str) -> list[tuple[str, str]]:
    environment = jinja2.Environment(keep_trailing_newline=True)
    tokens: Any = environment.lex(template)
    return [(kind, text) for _, kind, text in tokens]
