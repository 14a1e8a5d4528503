"""Turn the rows of the user's own tables into text examples, strictly: every error names the file and the line or row.

Finding the files, reading their rows, filling the template and finding the answer among the choices have a module each:
`parts`, `rows` (with `tables` beneath), `templates`, `answers`, and `conversations` for columns of messages.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fedcollm.config import FormatConfig
from fedcollm.data.answers import Asked, answer_indices
from fedcollm.data.cells import cell_text, cell_value, filled, label_text
from fedcollm.data.choices import LETTERS, Choices, listed, of_cell
from fedcollm.data.conversations import Conversation, conversation
from fedcollm.data.partition import MOST_CLASSES, check_classes
from fedcollm.data.parts import find_parts
from fedcollm.data.pool import Pool
from fedcollm.data.rows import Row, check_ids, label_notes, named, part_rows, with_answers
from fedcollm.data.templates import Template
from fedcollm.errors import UserError
from fedcollm.modalities.text.examples import SOME_ANSWER, TextExample, listed_choices

_PROMPT, _ANSWER, _CHOICES, _GROUP, _MESSAGES, _PARAPHRASES = (
    f"task.format.{name}" for name in ("prompt", "answer", "choices", "group", "messages", "paraphrases")
)


class _Form(NamedTuple):
    """A format, parsed.

    Attributes:
        format: the section.
        template: the template of the prompt; None for conversations.
        listed: the choices that all rows share, if any.
        own_choices: whether choices are an example's own: from a column, or letters whose texts the template lists.
        paraphrases: the other templates, for augmentation.
        needs_group: whether every row needs a group, as in the clients' data; elsewhere it may be empty.
    """

    format: FormatConfig
    template: Template | None
    listed: Choices | None
    own_choices: bool
    paraphrases: Sequence[Template] = ()
    needs_group: bool = True

    def asked(self, labelled: bool) -> list[tuple[str, str]]:
        """Return the columns that a file must have, each with the key that names it."""
        form, prompts = self.format, [] if self.template is None else self.template.columns
        single = {
            _MESSAGES: form.messages,
            _ANSWER: form.answer if labelled else None,
            _CHOICES: form.choices if isinstance(form.choices, str) else None,
            _GROUP: form.group if self.needs_group else None,
        }
        return [(name, _PROMPT) for name in prompts] + [(name, key) for key, name in single.items() if name is not None]


class _Draft(NamedTuple):
    """An example whose answer may still have to be found among its choices.

    Attributes:
        example: the example.
        place: its file and row, for messages.
        asked: its answer, unless it is known or there is none.
        empty: the columns of the template that are empty.
    """

    example: TextExample
    place: str
    asked: Asked | None = None
    empty: Sequence[str] = ()


def load_custom(path: Path, format: FormatConfig, several_classes: bool = True) -> Pool:
    """Return the examples in the user's own tables.

    Args:
        path: a single file, or a directory as `find_parts` describes it. Without a test file, the test set is cut from
            the training data; without a public file, D_a is too. In an unlabelled file, which becomes the unlabelled
            part of D_a, answers may be empty, and the column of the answer may be missing.
        format: which columns are the prompt, the choices and the answer.
        several_classes: whether to refuse training data with a single answer. The data of one client may have one.

    Raises:
        UserError: a file, a row or the format is invalid.
    """
    form = _form(format)
    parts = find_parts(path)
    if "unlabelled" in parts.files and format.choices is None:
        raise UserError(
            f"{parts.files['unlabelled'][0]}: without task.format.choices, an example without an answer has nothing to "
            "distill. Give the choices, or remove the file."
        )
    drafts, notes = dict[str, list[_Draft]](), list(parts.notes)
    for part, files in parts.files.items():
        drafts[part], told = _drafts(files, form._replace(needs_group=part == "train"), part != "unlabelled")
        notes += told
    found, told = _answered(drafts, format)
    if format.choices is not None and several_classes and "train" in found:
        check_classes(found["train"], str(parts.files["train"][0] if path.is_dir() else path))
    return Pool(**{"train": []} | found, notes=[*notes, *told, *label_notes(_labels(found, form))])


def asked_columns(format: FormatConfig) -> list[tuple[str, str]]:
    """Return the columns that a table needs to be asked about, without answers, each with the key that names it."""
    return _form(format)._replace(needs_group=False).asked(labelled=False)


def unanswered(rows: Sequence[Row], format: FormatConfig) -> list[TextExample]:
    """Return rows as examples without answers, for a trained model to answer.

    A conversation may end with an answer, which is left out. Without choices, `SOME_ANSWER` stands for the answer.

    Args:
        rows: the rows, with the columns that `asked_columns` returns.
        format: which columns are the prompt and the choices.

    Raises:
        UserError: a row or the format is invalid.
    """
    form = _form(format)._replace(needs_group=False)
    drafts: list[_Draft] = []
    for row in rows:
        if format.messages is not None:
            drafts.append(_of_conversation(row, _conversation(row, format.messages), form))
        else:
            drafts.append(_of_row(row, form, labelled=False))
    free = {"choices": (SOME_ANSWER,), "labels": (SOME_ANSWER,)} if format.choices is None else {}
    return [replace(draft.example, group=None, answer=None, **free) for draft in drafts]


def _form(format: FormatConfig) -> _Form:
    shared = listed(format.choices, _CHOICES) if isinstance(format.choices, list) else None
    own = format.choices is not None and (
        shared is None or listed_choices(format.prompt or "", format.choices) is not None
    )
    template = Template(format.prompt or "") if format.messages is None else None
    return _Form(format, template, shared, own, _paraphrases(format, template))


def _paraphrases(format: FormatConfig, template: Template | None) -> list[Template]:
    """Return the other templates; raise UserError if one has other columns than the prompt, or lists other choices."""
    found: list[Template] = []
    for number, text in enumerate(format.paraphrases or ()):
        key = f"{_PARAPHRASES}[{number}]"
        other, columns = Template(text, key), template.columns if template else []
        if set(other.columns) != set(columns):
            raise UserError(
                f"{key}: {text!r:.200} has the columns {', '.join(other.columns)}, and {_PROMPT} has "
                f"{', '.join(columns)}. Use the same columns."
            )
        if isinstance(format.choices, list):
            listed = [listed_choices(one, format.choices) for one in (text, format.prompt or "")]
            if listed[0] != listed[1]:
                raise UserError(
                    f"{key}: {text!r:.200} lists other choices than {_PROMPT}, so that answers would mean something "
                    "else. List the same ones."
                )
        found.append(other)
    return found


def _drafts(files: Sequence[Path], form: _Form, labelled: bool) -> tuple[list[_Draft], list[str]]:
    """Return the examples of a part, and notes about its rows."""
    rows, notes = part_rows(files, form.format, form.asked(labelled)), list[str]()
    if form.format.messages is not None:
        talks = {row.position: _conversation(row, form.format.messages) for row in rows}
        what = f"the answer of the assistant at the end of column {form.format.messages!r} ({_MESSAGES})"
        rows, notes = with_answers(
            rows, lambda row: talks[row.position].answer is not None, what, form.format.skip_unanswered, files
        )
        drafts = [_of_conversation(row, talks[row.position], form) for row in rows]
    else:
        if labelled:
            column = str(form.format.answer)
            rows, notes = with_answers(
                rows,
                lambda row: cell_value(row.cells, column, row.place, _ANSWER) is not None,
                f"column {column!r} ({_ANSWER})",
                form.format.skip_unanswered,
                files,
            )
        drafts = [_of_row(row, form, labelled) for row in rows]
    check_ids((draft.example for draft in drafts), (draft.place for draft in drafts))
    return drafts, notes + _empty_notes(drafts, files)


def _of_row(row: Row, form: _Form, labelled: bool) -> _Draft:
    """Return the example of a row with a prompt."""
    format, place, cells = form.format, row.place, row.cells
    prompt, empty = form.template.fill(cells, place) if form.template else ("", [])
    others = tuple(dict.fromkeys(other.fill(cells, place)[0] for other in form.paraphrases))
    value = filled(cells, str(format.answer), place, _ANSWER) if labelled else None
    answer = label_text(value, f"{place}: column {format.answer!r} ({_ANSWER})") if labelled else ""
    if format.choices is None:
        free = TextExample(row.id, prompt, (answer,), 0, (answer,), _group(row, form), paraphrases=others)
        return _Draft(free, place, None, empty)
    choices = form.listed or _own(row, str(format.choices))
    labels = choices.texts if form.listed else tuple(LETTERS[: len(choices.texts)])
    example = TextExample(
        row.id, prompt, choices.texts, None, labels, _group(row, form), form.own_choices, paraphrases=others
    )
    asked = Asked(place, value, answer, choices, form.listed is not None) if labelled else None
    return _Draft(example, place, asked, empty)


def _own(row: Row, column: str) -> Choices:
    value = filled(row.cells, column, row.place, _CHOICES)
    return of_cell(value, f"{row.place}: column {column!r}")


def _group(row: Row, form: _Form) -> str | None:
    name = form.format.group
    if name is None or (not form.needs_group and cell_value(row.cells, name, row.place, _GROUP) is None):
        return None
    return cell_text(row.cells, name, row.place, _GROUP)


def _conversation(row: Row, column: str) -> Conversation:
    value = filled(row.cells, column, row.place, _MESSAGES)
    return conversation(value, f"{row.place}: column {column!r} ({_MESSAGES})")


def _of_conversation(row: Row, said: Conversation, form: _Form) -> _Draft:
    answer = str(said.answer)
    group = _group(row, form)
    example = TextExample(row.id, said.prompt, (answer,), 0, (answer,), group, turns=said.turns)
    return _Draft(example, row.place)


def _empty_notes(drafts: Sequence[_Draft], files: Sequence[Path]) -> list[str]:
    """Return a note about each column of the template that is empty in some rows."""
    counts = Counter(column for draft in drafts for column in draft.empty)
    return [
        f"{named(files)}: column {column!r} is empty in {count:,} of {len(drafts):,} rows; lines of the prompt with "
        "nothing else are left out there"
        for column, count in counts.items()
    ]


def _answered(
    drafts: Mapping[str, Sequence[_Draft]], format: FormatConfig
) -> tuple[dict[str, list[TextExample]], list[str]]:
    """Return the examples of each part with their answers, read in one way in all parts, and notes about that way."""
    asked = [draft.asked for part in drafts.values() for draft in part if draft.asked is not None]
    indices, notes = answer_indices(asked, format.answer_is, str(format.answer))
    found = iter(indices)
    return {
        part: [one.example if one.asked is None else one.example.with_answer(next(found)) for one in examples]
        for part, examples in drafts.items()
    }, notes


def _labels(found: Mapping[str, Sequence[TextExample]], form: _Form) -> set[str]:
    """Return the labels that all rows share, or answers so few that they may be meant as labels."""
    if form.listed is not None:
        return set(form.listed.texts)
    if form.format.choices is not None:
        return set()
    answers = {str(example.label) for part in found.values() for example in part}
    return answers if len(answers) <= MOST_CLASSES else set()
