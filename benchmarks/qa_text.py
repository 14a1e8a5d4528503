"""Public text for healing an SLM of question answering: questions of other tasks, each with one of its choices.

    python -m benchmarks.qa_text DATA OUT.txt

DATA holds `csqa`, `obqa` and `mmlu` as in `task.path`. The choice is drawn without looking at the answer, so the text
has no labels. None of these questions is in ARC.
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


def paragraphs(data: Path, seed: int = 0) -> list[str]:
    """Return one paragraph per question, shuffled."""
    draw, found = random.Random(seed), list[str]()
    for name in FILES:
        for row in rows(data / name):
            question, choice = (" ".join(text.split()) for text in (row["question"], draw.choice(row["choices"])))
            if len(question.split()) < LONGEST:
                found.append(f"Question: {question} Answer: {choice}")
    draw.shuffle(found)
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_text("\n".join(paragraphs(Path(sys.argv[1]))) + "\n", encoding="utf-8")
