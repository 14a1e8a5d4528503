"""Look at a person's table, and propose the section `task` of a configuration that runs on it.

Every guess is said in a sentence, so that whoever reads the configuration can correct it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedcollm.data.table_columns import Column, are_choices, is_conversation
from fedcollm.errors import UserError
from fedcollm.modalities.jsonl import shorten
from fedcollm.modalities.vision.images import SUFFIXES as IMAGE_SUFFIXES

#: Endings of recordings.
_SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")

#: Words in the names of columns that hold answers, the strongest first.
_ANSWERS = (
    "label",
    "answer",
    "class",
    "category",
    "target",
    "output",
    "response",
    "completion",
    "department",
    "diagnosis",
    "klasse",
    "kategorie",
    "abteilung",
    "etiqueta",
    "clase",
    "classe",
    "étiquette",
    "ラベル",
    "分類",
    "カテゴリ",
    "正解",
    "回答",
    "診療科",
    "标签",
    "类别",
    "科室",
)
#: Words in the names of columns that say whose row it is.
_GROUPS = (
    "hospital",
    "client",
    "clinic",
    "bank",
    "court",
    "site",
    "center",
    "centre",
    "institution",
    "branch",
    "group",
    "speaker",
    "device",
    "region",
    "krankenhaus",
    "klinik",
    "filiale",
    "hôpital",
    "clinique",
    "病院",
    "医院",
    "施設",
    "支店",
    "병원",
)
#: First and last characters of scripts without spaces: Thai to Khmer, kana, Chinese characters.
_SPACELESS = (
    ("\u0e00", "\u0eff"),
    ("\u1000", "\u109f"),
    ("\u1780", "\u17ff"),
    ("\u3040", "\u30ff"),
    ("\u3400", "\u9fff"),
)

_MOST_CHOICES, _MOST_GROUPS = 50, 50


@dataclass(frozen=True)
class Wishes:
    """The columns that a person names; None where they are to be guessed.

    Attributes:
        prompt: template of the prompt.
        answer: column of the answers.
        group: column of the groups.
    """

    prompt: str | None = None
    answer: str | None = None
    group: str | None = None


def propose_format(columns: Sequence[Column], wishes: Wishes = Wishes()) -> tuple[dict[str, Any], list[str]]:
    """Return the section `task.format` for a table, and what was guessed, in sentences.

    Args:
        columns: the columns of the table.
        wishes: the columns that the person names.

    Raises:
        UserError: a column that is named does not exist, or nothing can be learnt from the table.
    """
    known = {column.name: column for column in columns}
    for key in (wishes.answer, wishes.group):
        if key is not None and key not in known:
            raise UserError(f"there is no column {key!r}. The columns are {', '.join(known)}.")
    if (talk := next((c for c in columns if is_conversation(c.nested)), None)) and not wishes.answer:
        group = _group(columns, [talk.name], wishes)
        found = {"messages": talk.name} | ({"group": group} if group else {})
        return found, [f"{talk.name} holds conversations; their last messages are the answers", *_said_of(group)]
    files = _files(columns)
    answer = _with_values(known[wishes.answer]) if wishes.answer else _answer(columns, files)
    group = _group(columns, [answer.name], wishes)
    used = {answer.name, group}
    if files:
        inputs, findings = files, [f"{column} holds paths of {key} files" for key, column in files.items()]
    else:
        inputs, findings = _prompt([c for c in columns if c.name not in used], answer, wishes)
    choices, said = _choices(columns, answer, inputs)
    key = "transcript" if "audio" in inputs and not answer.has_classes(_MOST_CHOICES) else "answer"
    joiner = {"joiner": ""} if "prompt" in inputs and _is_spaceless("".join(answer.values)) else {}
    found = inputs | {key: answer.name} | choices | joiner | ({"group": group} if group else {})
    return found, [*findings, *said, *_said_of(group)]


def _files(columns: Sequence[Column]) -> dict[str, str]:
    """Return the key of the format for files of images or recordings and their column; nothing if there are none."""
    for key, suffixes in (("image", IMAGE_SUFFIXES), ("audio", _SOUND_SUFFIXES)):
        if found := [c.name for c in columns if c.holds_files(suffixes)]:
            return {key: found[0]}
    return {}


def _answer(columns: Sequence[Column], files: Mapping[str, str]) -> Column:
    """Return the column of the answers: the one that is called so, or the last one that has classes.

    Where there are recordings, it may also be the one with the longest texts: what is said in them.
    """
    columns = [c for c in columns if c.name not in files.values()]
    usable = [c for c in columns if c.nested is None and not c.is_constant and not c.counts_rows]
    called = sorted((place, c.name) for c in usable if (place := c.is_called(_ANSWERS)) is not None)
    if called:
        return next(c for c in usable if c.name == called[0][1])
    for column in columns:
        if column.is_constant and column.is_called(_ANSWERS) is not None:
            _with_values(column)
    if "audio" in files and usable:
        return max(usable, key=lambda c: c.length)
    classes = [c for c in usable if c.has_classes(_MOST_CHOICES) and c.is_called(_GROUPS) is None]
    if not classes:
        raise UserError(
            "no column looks like an answer: none is called so, and none has a few values that repeat. Name it with "
            f"--answer. The columns are {', '.join(c.name for c in columns)}."
        )
    return classes[-1]


def _with_values(column: Column) -> Column:
    """Return a column of answers if it has several of them.

    Raises:
        UserError: it is empty, has one value, or holds what is no answer.
    """
    what = ""
    if column.nested is not None:
        what = f"holds {shorten(column.nested)}, and an answer is text, a number or a date"
    elif not column.values:
        what = "is empty"
    elif column.is_constant:
        what = f"has one value, {shorten(next(iter(column.values)))}, so that there is nothing to learn from it"
    if what:
        raise UserError(f"column {column.name!r} {what}. Name another column with --answer, or give other rows.")
    return column


def _group(columns: Sequence[Column], taken: Sequence[str], wishes: Wishes) -> str | None:
    """Return the column of the groups: the one that is called so and has one in every row, if there is one."""
    if wishes.group:
        return wishes.group
    rows = max(c.filled for c in columns)
    left = [c for c in columns if c.name not in taken and c.has_classes(_MOST_GROUPS) and c.filled == rows]
    called = sorted((place, c.name) for c in left if (place := c.is_called(_GROUPS)) is not None)
    return called[0][1] if called else None


def _said_of(group: str | None) -> list[str]:
    return (
        [f"{group} says which client a row belongs to"]
        if group
        else ["no column has the name of a client in every row"]
    )


def _prompt(columns: Sequence[Column], answer: Column, wishes: Wishes) -> tuple[dict[str, Any], list[str]]:
    """Return the template of the prompt, and what was guessed."""
    if wishes.prompt:
        return {"prompt": wishes.prompt}, []
    asked = [c for c in columns if c.nested is None and not c.is_constant and not c.counts_rows and c.fits_a_template]
    if not asked:
        raise UserError(f"beside {answer.name!r}, no column has text to ask about. Give a template with --prompt.")
    lines = [f"{{{c.name}}}" if len(asked) == 1 else f"{_escaped(c.name)}: {{{c.name}}}" for c in asked]
    left = sorted({c.name for c in columns} - {c.name for c in asked} - {_own_choices(columns)})
    unused = [f"not used: {', '.join(left)}"] if left else []
    return {"prompt": "\n".join([*lines, f"{_escaped(answer.name)}:"])}, unused


def _own_choices(columns: Sequence[Column]) -> str | None:
    """Return the column of the choices of each row, if there is one."""
    return next((c.name for c in columns if c.nested is not None and are_choices(c.name)), None)


def _escaped(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


def _is_spaceless(text: str) -> bool:
    """Return whether most letters are of a script that puts no spaces between words."""
    letters = [sign for sign in text if sign.isalpha()]
    spaceless = sum(any(start <= sign <= end for start, end in _SPACELESS) for sign in letters)
    return 2 * spaceless > len(letters)


def _choices(columns: Sequence[Column], answer: Column, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the choices, if the answers have some, and what was guessed."""
    own = _own_choices(columns)
    if own and "prompt" in inputs:
        return {"choices": own}, [f"{own} holds the choices of each row, {answer.name} the right one"]
    if "prompt" in inputs and not answer.has_classes(_MOST_CHOICES):
        return {}, [f"{answer.name} holds free text, which the models learn to write"]
    if "prompt" not in inputs:
        said = "classes" if answer.has_classes(_MOST_CHOICES) else "different texts"
        return {}, [f"{answer.name} holds {len(answer.values)} {said}"]
    choices = sorted(answer.values)
    return {"choices": choices}, [f"{answer.name} holds {len(choices)} classes"]
