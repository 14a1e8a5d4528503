"""A task of hospitals made of MedMCQA: a question goes to one of 16 departments.

    python -m benchmarks.departments DATA OUT

DATA is a folder with `dev.jsonl.gz` of MedMCQA, whose ids begin with the department (`medmcqa-Anatomy-00012`). Writes
OUT/train.jsonl, and OUT/departments.yaml, a configuration with the sizes of the preset `icd10`. Departments with fewer
than 50 questions are left out, and so are questions of more than 12 words, which would take several times as long. The
choices of a question are not shown, only the question.
"""

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

#: Fewest questions of a department, after long ones are left out.
FEWEST = 50

#: Longest question, in words.
LONGEST = 12

CONFIGURATION = """\
name: departments
task:
  name: custom
  path: {path}
  clients: 4
  private_size: 40
  public_size: 80
  unlabelled_size: 1280
  test_size: 500
  partition: {{kind: dirichlet, alpha: 0.3}}
  format: {{prompt: "Question: {{question}}\\nDepartment:", answer: department, choices: [{choices}]}}
slm: {{layers: [0, 1, 2, 23, 24, 25, 26, 27, 28, 29], heal: {{text: icd10}}}}
client: {{learning_rate: 3.0e-3, max_grad_norm: 1.0}}
server: {{max_grad_norm: 1.0, unlabelled_per_round: 480}}
evaluation: {{clients: never, every: 5, batch_size: 64}}
"""


def rows(file: Path) -> list[dict[str, str]]:
    """Return the question and the department of each row."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        found = list(map(json.loads, lines))
    found = [row for row in found if len(str(row["question"]).split()) <= LONGEST]
    names = [str(row["id"]).split("-")[1].replace("_", " ") for row in found]
    count = Counter(names)
    return [
        {"question": " ".join(str(row["question"]).split()), "department": name}
        for row, name in zip(found, names, strict=True)
        if count[name] >= FEWEST
    ]


def main(data: Path, out: Path) -> None:
    """Write the examples and the configuration."""
    found = rows(data / "dev.jsonl.gz")
    out.mkdir(parents=True, exist_ok=True)
    file = out / "train.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    choices = ", ".join(sorted({row["department"] for row in found}))
    text = CONFIGURATION.format(path=json.dumps(str(file.resolve())), choices=choices)
    (out / "departments.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
