"""Three professions (hospital, bank, court), each with its own subjects of MMLU (Hendrycks et al., arXiv 2009.03300).

The clients' examples and the test set come from these subjects, and the public examples from all other subjects. The
prompts equal those of lm-evaluation-harness 0.4 (`lm_eval/tasks/mmlu/default`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedcollm.data.choices import LETTERS
from fedcollm.data.partition import check_classes
from fedcollm.data.parts import find_part
from fedcollm.data.pool import Pool
from fedcollm.data.sources.qa import JSONL, Question, download, placed_rows, read_questions
from fedcollm.errors import UserError
from fedcollm.modalities.text.examples import TextExample

HUB = "cais/mmlu"
LAYOUT = (
    "a directory with at least one of dev.jsonl, val.jsonl and test.jsonl (or .jsonl.gz), or a directory with such a "
    'subdirectory named mmlu. Each line is {"id": "SUBJECT-SPLIT-NUMBER", "question": "...", '
    '"choices": ["...", "..."], "labels": ["A", "B"], "answer": "B"}'
)

#: The beginning of a prompt.
ABOUT = "The following are multiple choice questions (with answers) about {subject}.\n\n"

#: Client to the subjects of its questions.
PROFESSIONS: Mapping[str, tuple[str, ...]] = {
    "hospital": (
        "anatomy",
        "clinical_knowledge",
        "college_biology",
        "college_medicine",
        "human_aging",
        "medical_genetics",
        "nutrition",
        "professional_medicine",
        "virology",
    ),
    "bank": (
        "business_ethics",
        "econometrics",
        "high_school_macroeconomics",
        "high_school_microeconomics",
        "management",
        "marketing",
        "professional_accounting",
    ),
    "court": ("international_law", "jurisprudence", "professional_law"),
}

_PROFESSION_OF = {subject: profession for profession, subjects in PROFESSIONS.items() for subject in subjects}


class SubjectExample(TextExample):
    """A question whose prompt starts with a line that names its subject."""

    @property
    def content(self) -> str:
        """The question and its choices without case and spacing, since some questions appear under two subjects."""
        return " ".join(self.prompt.partition("\n\n")[2].casefold().split())


def load_professions(path: Path | None) -> Pool:
    """Return the questions of the three professions, and all other questions as public ones, from all splits of MMLU.

    Args:
        path: the directory of MMLU or its parent; None for the Hugging Face hub or its cache.

    Raises:
        UserError: the hub can't be reached, a file is missing or invalid, or a profession has no questions.
    """
    examples = read_questions(_hub_rows() if path is None else _file_rows(path), _example)
    train = [example for example in examples if example.group]
    counts = Counter(example.group for example in train)
    for profession, subjects in PROFESSIONS.items():
        if not counts[profession]:
            raise UserError(
                f"task professions: the data {'of ' + HUB if path is None else 'in ' + str(path)} has no questions for "
                f"the {profession}. Add questions of at least one of {', '.join(subjects)}."
            )
    check_classes(train, "the data of professions")
    return Pool(train, public=[example for example in examples if not example.group])


def _file_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    folders = [path / "mmlu", path]
    for folder in folders:
        files = [file for part in ("dev", "val", "test") if (file := find_part(folder, part, JSONL))]
        if files:
            return [row for file in files for row in placed_rows(file)]
    raise UserError(
        f"task.path: there is no dev, val or test file (.jsonl or .jsonl.gz) in {' or '.join(map(str, folders))}. "
        f"For professions, give {LAYOUT}."
    )


def _hub_rows() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of the hub's data set in the format of our files, each after its place, for messages."""
    parts = download("task professions", HUB, "all", f"set task.path to {LAYOUT}")
    for split in ("dev", "validation", "test"):
        for i, row in enumerate(parts[split], 1):
            letters = list(LETTERS[: len(row["choices"])])
            fields = {"question": row["question"], "choices": list(row["choices"]), "labels": letters}
            place = f"{HUB} {split}, row {i}"
            yield place, {"id": f"{row['subject']}-{split}-{i}", **fields, "answer": letters[row["answer"]]}


def _example(question: Question, place: str) -> TextExample:
    subject, *rest = question.id.rsplit("-", 2)
    if not subject or len(rest) < 2:
        raise UserError(
            f"{place}: id {question.id!r} has no subject. Write SUBJECT-SPLIT-NUMBER, such as anatomy-test-0012."
        )
    prompt = ABOUT.format(subject=subject.replace("_", " ")) + question.lettered
    letters = question.letters
    group = _PROFESSION_OF.get(subject)
    return SubjectExample(question.id, prompt, letters, question.answer, letters, group, own_choices=True)
