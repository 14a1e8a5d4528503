"""Twelve questions of this project's own, each with five choices, that are hard to tokenize and to score.

Choices begin alike, are one token or many, and hold letters with a dot, digits, quotes and characters of several bytes;
questions begin with spaces and hold line breaks; two are longer than the context of a small model.
"""

import json
from pathlib import Path

LONG = "A farmer counts her animals every evening, writes the number down, and closes the gate. "

#: Question, five choices, index of the right one; tasks with four choices take the first four.
ITEMS = [
    ("Which of these animals can fly?", ["a sparrow", "a spaniel", "a salmon", "a snail", "a seal"], 0),
    ("What falls from clouds in winter", ["sand", "snow", "salt", "steam", "smoke"], 1),
    ("Water boils at sea level at", ["10 °C", "50 °C", "100 °C", "1000 °C", "100 °F"], 2),
    ("Which sum is right?", ["1 + 1 = 1", "1 + 1 = 3", "1 + 1 = 11", "1 + 1 = 2", "1 + 1 = 0"], 3),
    ("A plant needs light, water and", ["air", "air and soil that holds minerals", "a coat", "noise", "paint"], 1),
    ('  Who wrote the rule down?\nThe note says: "by A. Smith".', ["B. Jones", "A. Smith", "C", "D.", "E. A."], 1),
    ("Was heißt „Bär“ auf Englisch?", ["bear", "beer", "berry", "bare – naked", "brère"], 0),
    ("水 is the sign for", ["fire 火", "water", "wood", "metal", "earth"], 1),
    (5 * LONG + "What does she close?", ["the book", "the door", "the gate", "the shop", "the lid"], 2),
    (6 * LONG + "How often does she count?", ["daily", "weekly", "hourly", "yearly", "never"], 0),
    ("The opposite of hot is", ["cold", "colder than the coldest day", "co", "warm", "hot"], 0),
    ("Which word is a colour: cat, red, run?", ["cat", "run", "the cat", "red", "to run"], 3),
]


def write_items(directory: Path, choices: int) -> Path:
    """Write the items as training and test part of a question answering task.

    Args:
        directory: becomes what `task.path` takes.
        choices: how many of each item's choices are kept.
    """
    directory.mkdir(parents=True)
    labels = ["A", "B", "C", "D", "E"][:choices]
    rows = [
        {"id": f"q{i}", "question": question, "choices": texts[:choices], "labels": labels, "answer": labels[answer]}
        for i, (question, texts, answer) in enumerate(ITEMS)
    ]
    for part in ("train", "test"):
        lines = [json.dumps(row) + "\n" for row in rows]
        (directory / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    return directory
