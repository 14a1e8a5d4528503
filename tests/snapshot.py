"""Texts that tests compare as a whole, in one file each; `--update-snapshots` writes what is said now.

scripts/check tests tests/test_refusals.py --update-snapshots
"""

from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).with_name("snapshots")


@dataclass
class Snapshot:
    """A text file of named texts: a line with the name in brackets, and the text's lines, indented.

    Attributes:
        file: where it is.
        update: take what is said instead of comparing.
    """

    file: Path
    update: bool
    texts: dict[str, str] = field(init=False)
    said: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.texts = {}
        for block in self.file.read_text(encoding="utf-8").split("\n[")[1:] if self.file.exists() else ():
            name, _, text = block.partition("]\n")
            self.texts[name] = "\n".join(line.removeprefix("    ") for line in text.rstrip("\n").split("\n"))

    def check(self, name: str, text: str) -> None:
        """Compare a text with the one in the file."""
        assert name not in self.said, f"two texts are called {name}"
        self.said[name] = text.rstrip("\n")
        if not self.update:
            assert self.said[name] == self.texts.get(name, "")

    def save(self, title: str, names: list[str]) -> None:
        """Write the texts with these names, in this order."""
        texts = {name: self.said.get(name, self.texts.get(name, "")) for name in names}
        blocks = [f"[{name}]\n" + "".join(f"    {line}\n" for line in text.split("\n")) for name, text in texts.items()]
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text("\n".join([title + "\n", *blocks]), encoding="utf-8")
