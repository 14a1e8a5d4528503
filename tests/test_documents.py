"""The documents name only files, commands and configuration keys that exist."""

import re
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
import typer
from pydantic import BaseModel

from fedcollm.cli.app import app
from fedcollm.config import RunConfig
from fedcollm.config.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", ".github/*.md", "docs/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)

#: Places that a path in a document may be relative to, besides the document itself.
BASES = (ROOT, ROOT / "src" / "fedcollm")

LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w/.:<{-])((?:[\w.-]+/)+[\w-]+\.(?:cff|md|png|py|svg|toml|txt|yml))\b")
FOLDER = re.compile(r"(?<![\w/.-])((?:src|tests|docs|benchmarks|examples|scripts)/[\w./-]*)")
CODE = re.compile(r"^(?: {4}|\t)(.*)$|`([^`\n]+)`", re.MULTILINE)
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SETTING = re.compile(r"--set\s+'?([\w.]+)=")
KEY = re.compile(r"`((?:task|llm|slm|client|server|federation|evaluation)(?:\.[a-z_]+)+)\b")

#: Tables of old and new names speak of keys that are gone.
HISTORICAL = {Path("CHANGELOG.md")}

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documents are not here")
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=str)


def text(document: Path) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def code(markdown: str) -> list[str]:
    """Lines of code blocks, and inline code, in order; a line that ends with a backslash goes on in the next one."""
    fenced = [line for block in FENCED.findall(markdown) for line in block.splitlines()]
    rest = FENCED.sub("", markdown).replace("\\\n", " ")
    return fenced + [(block or inline).strip() for block, inline in CODE.findall(rest)]


def slugs(markdown: str) -> set[str]:
    """Anchors of the headings, as repository hosts make them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", markdown), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def sections(annotation: Any) -> list[type[BaseModel]]:
    """Configuration sections that a field may hold."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def find_key(key: str) -> tuple[bool, list[type[BaseModel]]]:
    """Whether a dotted key exists, and the sections that it holds; a leaf holds none."""
    places: list[type[BaseModel]] = [RunConfig]
    for part in key.split("."):
        fields = [place.model_fields[part] for place in places if part in place.model_fields]
        if not fields:
            return False, []
        places = sections(fields[0].annotation)
    return True, places


def is_settable(key: str) -> bool:
    """Whether `--set KEY=VALUE` is possible: a leaf, or a section that `true` or `{}` can stand for."""
    exists, places = find_key(key)
    return exists and all(
        "enabled" in place.model_fields or not any(field.is_required() for field in place.model_fields.values())
        for place in places
    )


def settings(markdown: str) -> set[str]:
    """Keys after `--set`; those of `fedcollm shrink` are relative to the section of the SLM."""
    lines = ((line, "slm." if "fedcollm shrink" in line else "") for line in markdown.splitlines())
    return {f"{prefix}{key}" for line, prefix in lines for key in SETTING.findall(line)}


@pytest.mark.parametrize(
    ("key", "settable"),
    [
        ("federation.rounds", True),
        ("federation.privacy.level", True),
        ("federation.secure_aggregation", True),
        ("federation.privacy", False),
        ("server.pseudo_labels", True),
        ("slm.heal.size", True),
        ("heal.size", False),
        ("federation.privacy.levels", False),
        ("seed", True),
        ("sed", False),
    ],
)
def test_key_is_a_leaf_or_a_section_with_a_short_form(key, settable):
    assert is_settable(key) is settable


def test_code_is_told_from_prose():
    markdown = (
        "fedcollm prose\n\n    fedcollm run \\\n      --quiet\n\nand `fedcollm check`\n\n```sh\nfedcollm init\n```\n"
    )
    assert [line.split() for line in code(markdown)] == [
        ["fedcollm", "init"],
        ["fedcollm", "run", "--quiet"],
        ["fedcollm", "check"],
    ]


def test_readme_fits_on_one_page():
    assert len(text(Path("README.md")).splitlines()) <= 150


@each_document
def test_links_lead_somewhere(document: Path):
    place, broken = (ROOT / document).parent, []
    for link in LINK.findall(text(document)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = place / path if path else ROOT / document
        if not target.exists() or (anchor and anchor not in slugs(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert not broken


@each_document
def test_files_that_are_named_exist(document: Path):
    bases = (*BASES, (ROOT / document).parent)
    named = set(PATH.findall(text(document))) | {folder.rstrip(".") for folder in FOLDER.findall(text(document))}
    assert not sorted(name for name in named if not any((base / name).exists() for base in bases))


@each_document
def test_commands_and_their_options_exist(document: Path):
    wrong = []
    for line in code(text(document)):
        words = line.partition("#")[0].split()
        if words[:1] != ["fedcollm"] or not words[1:] or not re.fullmatch(r"-*[a-z-]+", words[1]):
            continue
        command: Any = typer.main.get_command(app)
        for word in words[1:]:
            if word.startswith("--"):
                known = {option for parameter in command.params for option in parameter.opts}
                if word.partition("=")[0] not in known | {"--help"}:
                    wrong.append(line)
            elif hasattr(command, "commands"):
                if word not in command.commands:
                    wrong.append(line)
                    break
                command = command.commands[word]
    assert not wrong


@each_document
def test_settings_name_keys_of_the_configuration(document: Path):
    assert not sorted(key for key in settings(text(document)) if not is_settable(key))


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path not in HISTORICAL], ids=str)
def test_keys_that_are_named_exist(document: Path):
    assert not sorted({key for key in KEY.findall(text(document)) if not find_key(key)[0]})


def test_every_method_of_compare_is_explained():
    assert not sorted(name for name in METHODS if f"`{name}`" not in text(Path("docs/usage.md")))
