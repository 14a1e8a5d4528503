"""Public text for healing an SLM of question answering: questions of other tasks, each with one of its choices.

    python -m benchmarks.qa_text DATA OUT.txt [TASK]

DATA holds `csqa`, `obqa` and `mmlu` as in `task.path`. The choice is drawn without looking at the answer, so the text
has no labels. None of these questions is in ARC. Where one of the three is the task itself, name it: its questions are
left out.
"""

import gzip
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Files of the tasks, and the longest question in words.
FILES, LONGEST = ("csqa/train.jsonl.gz", "obqa/train.jsonl.gz", "mmlu/test.jsonl.gz"), 40


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the questions of a file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def paragraphs(data: Path, without: str | None = None, seed: int = 0) -> list[str]:
    """Return one paragraph per question, shuffled, without the questions of one task."""
    draw, found = random.Random(seed), list[str]()
    for name in (name for name in FILES if name.partition("/")[0] != without):
        for row in rows(data / name):
            question, choice = (" ".join(text.split()) for text in (row["question"], draw.choice(row["choices"])))
            if len(question.split()) < LONGEST:
                found.append(f"Question: {question} Answer: {choice}")
    draw.shuffle(found)
    return found


if __name__ == "__main__":
    data, out, *without = sys.argv[1:]
    if without and without[0] not in {name.partition("/")[0] for name in FILES}:
        sys.exit(f"there is no text of {without[0]!r} to leave out; choose from csqa, obqa and mmlu")
    Path(out).write_text("\n".join(paragraphs(Path(data), *without)) + "\n", encoding="utf-8")
