"""Read YAML as its core schema of version 1.2 says, and refuse what would be read otherwise than it was meant.

PyYAML follows version 1.1, in which `no` is false, `1e-3` a text, `12:30` the number 750, `010` the number 8 and
`2024-01-01` a date. Here only `true` and `false` are booleans, numbers are written as in JSON (also `0x1f`, `0o17`,
`.inf` and `.nan`), and all else is text. Anchors, aliases and merge keys (`<<`) work as in 1.1.
"""

import math
import re
from typing import Any, ClassVar, cast

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

#: Most values that a text may stand for once its aliases are followed.
_MOST_VALUES = 100_000

#: Words that version 1.1 reads as booleans, for keys that hold nothing but a boolean.
_SWITCHES = {"yes": True, "on": True, "no": False, "off": False}


class _Loader(yaml.SafeLoader):
    """A loader of PyYAML with the scalars of the core schema."""

    yaml_implicit_resolvers: ClassVar[Any] = {}  # instead of those of version 1.1, which the class would inherit


class _Dumper(yaml.SafeDumper):
    """A dumper of PyYAML that keeps text on one line, in quotes where either version would read something else."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return the node of a text, which is in double quotes if it has line breaks or other signs of control."""
        style = None if text.isprintable() else '"'
        return cast(Any, self).represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    for _class in (_Loader, _Dumper):
        cast(Any, _class).add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _integer(loader: Any, node: ScalarNode) -> int:
    text = node.value.lstrip("+")
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text if base == 10 else text[2:], base)


def _number(loader: Any, node: ScalarNode) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


cast(Any, _Loader).add_constructor("tag:yaml.org,2002:int", _integer)
cast(Any, _Loader).add_constructor("tag:yaml.org,2002:float", _number)


def read_yaml(text: str) -> Any:
    """Return the value that a YAML text holds; None if it is empty.

    Raises:
        ValueError: it is not valid, a key stands twice in one mapping, or its aliases multiply without end. The message
            says where.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = cast(Any, loader).get_single_node()
        if node is None:
            return None
        _check_keys(node, set())
        if _values(node, {}) > _MOST_VALUES:
            raise ValueError(f"its aliases (*name) stand for more than {_MOST_VALUES} values")
        return cast(Any, loader).construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(_reason(error)) from error
    except Exception as error:  # PyYAML fails in many ways on a value that does not fit its tag, such as !!bool maybe
        raise ValueError(f"a value does not fit its tag (!!name): {type(error).__name__} {error}") from error
    finally:
        if loader is not None:
            cast(Any, loader).dispose()


def has_comment(text: str) -> bool:
    """Return whether a YAML text that can be read has a comment.

    >>> has_comment("# 1"), has_comment("1 # 2"), has_comment("'#'"), has_comment("a#b")
    (True, True, False, False)
    """
    end = 0
    for token in cast(Any, yaml).scan(text, Loader=_Loader):
        if "#" in text[end : token.start_mark.index]:
            return True
        end = max(end, token.end_mark.index)
    return False


def _reason(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark is not None and problem else str(error)


def write_yaml(value: Any, **options: Any) -> str:
    """Return a value as YAML that `read_yaml`, and a reader of version 1.1, reads as the same value.

    Args:
        value: a plain value.
        options: those of `yaml.dump`.
    """
    return cast(Any, yaml).dump(value, Dumper=_Dumper, width=math.inf, allow_unicode=True, **options)


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [child for pair in cast("list[tuple[Node, Node]]", node.value) for child in pair]
    return cast("list[Node]", node.value) if isinstance(node, SequenceNode) else []


def _check_keys(node: Node, seen: set[int]) -> None:
    """Refuse a key that stands twice in a mapping; a merged key may stand there once more."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, _ in cast("list[tuple[Node, Node]]", node.value):
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines:
                raise ValueError(
                    f"line {line}: the key {key.value!r:.60} stands twice in one section, first on line {lines[name]}. "
                    "Remove one of them"
                )
            lines[name] = line
    for child in _children(node):
        _check_keys(child, seen)


def _values(node: Node, known: dict[int, int | None]) -> int:
    """Return the number of values that a node stands for, at most a few more than `_MOST_VALUES`.

    Raises:
        ValueError: an alias is within what it stands for.
    """
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise ValueError(f"line {node.start_mark.line + 1}: an alias (*name) stands within its own anchor (&name)")
        return count
    known[id(node)] = None
    count = min(1 + sum(_values(child, known) for child in _children(node)), _MOST_VALUES + 1)
    known[id(node)] = count
    return count


def as_switch(value: object) -> object:
    """Return the boolean that a word such as `yes` or `off` stands for where only a boolean can; else the value."""
    return _SWITCHES.get(value.lower(), value) if isinstance(value, str) else value
