"""How much planted personal data does the audit find? Precision and recall on made-up notes, by kind.

    python -m benchmarks.personal_data OUT [--rows 400] [--seed 0]

Writes OUT/notes.csv, whose names, numbers, addresses and dates are drawn at random and belong to nobody, and
OUT/truth.jsonl, the personal data in each row with its place. A third of the rows have none, but medical terms with the
names of doctors in them, doses, laboratory values and codes. Then every row is searched, and a span counts as found if
one of the same kind overlaps it. OUT/personal_data.json holds the result.
"""

import argparse
import csv
import json
import random
import string
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedcollm.data.audit.personal import spans

_FIRST = [
    "Anna",
    "Peter",
    "Maria",
    "James",
    "Linda",
    "Robert",
    "Emma",
    "Thomas",
    "Julia",
    "Michael",
    "Sarah",
    "David",
    "Laura",
    "Daniel",
    "Grace",
    "Henry",
]
_LAST = [
    "Miller",
    "Schneider",
    "Johnson",
    "Tanaka",
    "Weber",
    "Brown",
    "Garcia",
    "Novak",
    "Fischer",
    "Smith",
    "Rossi",
    "Walker",
    "Becker",
    "Clark",
]
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def _digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choices(string.digits, k=count))


def _name(draw: random.Random) -> str:
    return f"{draw.choice(_FIRST)} {draw.choice(_LAST)}"


def _phone(draw: random.Random) -> str:
    return draw.choice(
        [
            f"({draw.randint(201, 989)}) {draw.randint(200, 989)}-{_digits(draw, 4)}",
            f"+1 {draw.randint(201, 989)} {draw.randint(200, 989)} {_digits(draw, 4)}",
            f"+49 30 {draw.randint(1, 9)}{_digits(draw, 6)}",
            f"030 {draw.randint(1, 9)}{_digits(draw, 6)}",
            f"03-{draw.randint(3, 6)}{_digits(draw, 3)}-{_digits(draw, 4)}",
            f"090-{draw.randint(1, 9)}{_digits(draw, 3)}-{_digits(draw, 4)}",
        ]
    )


def _email(draw: random.Random) -> str:
    name = f"{draw.choice(_FIRST)}.{draw.choice(_LAST)}{draw.randint(1, 99)}".lower()
    return f"{name}@{draw.choice(['mail', 'post'])}.example.org"


def _birth_date(draw: random.Random) -> str:
    day, month, year = draw.randint(1, 28), draw.randint(1, 12), draw.randint(1930, 2015)
    forms = [f"{day} {_MONTHS[month - 1]} {year}", f"{year}-{month:02}-{day:02}", f"{month:02}/{day:02}/{year}"]
    return draw.choice([*forms, f"{day:02}.{month:02}.{year}", f"{_MONTHS[month - 1]} {day}, {year}"])


def _record_number(draw: random.Random) -> str:
    return draw.choice([_digits(draw, 8), f"A-{_digits(draw, 6)}", f"{_digits(draw, 4)}-{_digits(draw, 3)}"])


def _iban(draw: random.Random) -> str:
    """Return a German IBAN whose check digits are right."""
    account = _digits(draw, 18)
    check = 98 - int(f"{account}131400") % 97
    text = f"DE{check:02}{account}"
    return draw.choice([text, " ".join(text[i : i + 4] for i in range(0, len(text), 4))])


def _social(draw: random.Random) -> str:
    return f"{draw.randint(100, 599)}-{draw.randint(10, 99)}-{draw.randint(1000, 9999)}"


#: Kind of personal data to what makes up one.
MADE: Mapping[str, Callable[[random.Random], str]] = {
    "NAME": _name,
    "PHONE": _phone,
    "EMAIL": _email,
    "BIRTH_DATE": _birth_date,
    "RECORD_NUMBER": _record_number,
    "IBAN": _iban,
    "SOCIAL_SECURITY_NUMBER": _social,
}

#: Notes with a place for each kind.
WITH = (
    "{NAME} was admitted with chest pain; date of birth: {BIRTH_DATE}, MRN {RECORD_NUMBER}.",
    "Patient {NAME}, born {BIRTH_DATE}, reports fever since Monday. Reachable at {PHONE}.",
    "Call {PHONE} or write to {EMAIL} about the results of the blood test.",
    "Medical record number: {RECORD_NUMBER}. The daughter, {NAME}, asks for a call at {PHONE}.",
    "Invoice paid from {IBAN} by {NAME} after the operation on the left knee.",
    "DOB {BIRTH_DATE}. SSN {SOCIAL_SECURITY_NUMBER}. Shortness of breath when climbing stairs.",
    "Referred by {NAME} for a second opinion on the fracture of the wrist; e-mail {EMAIL}.",
    "I spoke with {NAME} today, who takes 5 mg of ramipril and feels well.",
    "Patientin geb. am {BIRTH_DATE}, Patientennummer {RECORD_NUMBER}, Tel. {PHONE}, klagt über Schmerzen im Bauch.",
    "患者番号: {RECORD_NUMBER}、電話 {PHONE}。昨日から膝の痛みを訴えている。",
)

#: Notes without personal data.
WITHOUT = (
    "Crohn's disease of the small intestine, treated with 50 mg of azathioprine since March 2021.",
    "Parkinson's disease, Hoehn and Yahr stage 2, no falls, blood pressure 120/80.",
    "Hodgkin lymphoma, stage IIB, ICD-10 C81.9; leukocytes 12,400 per microlitre.",
    "Fracture of the left wrist after a fall on the ice; plaster cast for 6 weeks.",
    "Laboratory values of 2024-03-12: sodium 138 mmol/l, potassium 4.2 mmol/l, creatinine 0.9 mg/dl.",
    "Down syndrome with an atrioventricular septal defect, operated on in 2010.",
    "The ECG shows atrial fibrillation with a rate of 110-130 per minute.",
    "Guillain-Barré syndrome after an infection with Campylobacter; the course is mild.",
    "Der Patient klagt seit gestern über starke Schmerzen im Bauch und hat 39,5 °C Fieber.",
    "Type 2 diabetes, HbA1c 7.8 %, metformin 1000 mg 1-0-1, next visit in 3 months.",
)


def notes(rows: int, seed: int) -> list[tuple[str, list[tuple[int, int, str]]]]:
    """Return made-up notes, each with start, end and kind of its personal data."""
    draw, made = random.Random(seed), list[tuple[str, list[tuple[int, int, str]]]]()
    for _ in range(rows):
        text, found = "", list[tuple[int, int, str]]()
        for literal, kind, _, _ in string.Formatter().parse(draw.choice(WITH if draw.random() < 2 / 3 else WITHOUT)):
            text += literal
            if kind:
                value = MADE[kind](draw)
                found.append((len(text), len(text) + len(value), kind))
                text += value
        made.append((text, found))
    return made


def measured(made: list[tuple[str, list[tuple[int, int, str]]]]) -> dict[str, Any]:
    """Return precision and recall by kind, and over all."""
    planted, hit, said, right = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for text, truth in made:
        found = [(span.start, span.end, span.kind) for span in spans(text)]
        for one in truth:
            planted[one[2]] += 1
            hit[one[2]] += any(_agree(one, other) for other in found)
        for one in found:
            said[one[2]] += 1
            right[one[2]] += any(_agree(one, other) for other in truth)
    kinds = {kind: _scores(planted[kind], hit[kind], said[kind], right[kind]) for kind in sorted(planted | said)}
    return {"all": _scores(planted.total(), hit.total(), said.total(), right.total()), **kinds}


def _agree(one: tuple[int, int, str], other: tuple[int, int, str]) -> bool:
    return one[2] == other[2] and one[0] < other[1] and other[0] < one[1]


def _scores(planted: int, hit: int, said: int, right: int) -> dict[str, Any]:
    return {
        "planted": planted,
        "recall": round(hit / planted, 3) if planted else None,
        "said": said,
        "precision": round(right / said, 3) if said else None,
    }


def main() -> None:
    """Write the notes, search them, and print the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    made = notes(asked.rows, asked.seed)
    with (asked.out / "notes.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("note",), *((text,) for text, _ in made)])
    (asked.out / "truth.jsonl").write_text("".join(json.dumps(found) + "\n" for _, found in made), encoding="utf-8")
    result = measured(made)
    (asked.out / "personal_data.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    for kind, scores in result.items():
        print(kind, scores)


if __name__ == "__main__":
    main()
