"""Choose the test examples that a report shows, and write them with the models' answers into the run directory."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedcollm.federation.server import Server
from fedcollm.modalities.exhibits import Exhibit, bounded, to_json
from fedcollm.runs import directory as directories
from fedcollm.runs.exhibit_files import read_exhibits

#: Examples answered before training for each one to be shown, so that wrong and right ones are among them.
_CANDIDATES = 2


def write_exhibits(directory: Path, server: Server) -> None:
    """Write `exhibits.json` after the models were scored, if `evaluation.exhibits` asks for any.

    They are chosen among the examples that were answered before training too, if there are any.
    """
    if server.evaluation.exhibits:
        first = {one.id for one in read_exhibits(directory, directories.EXHIBITS_START)}
        examples = [example for example in server.test if example.id in first] or server.test
        directories.write_json(directory, directories.EXHIBITS, to_json(bounded(exhibits(server, examples))))


def write_first_answers(directory: Path, server: Server) -> None:
    """Write `exhibits_start.json`: what the untrained models answer to the examples of which some will be shown."""
    if server.evaluation.exhibits:
        chosen = choose(server.test, {}, _CANDIDATES * server.evaluation.exhibits)
        answered = _answered([Exhibit(example.id) for example in chosen], chosen, server)
        directories.write_json(directory, directories.EXHIBITS_START, to_json(bounded(answered)))


def exhibits(server: Server, examples: Sequence[Any]) -> list[Exhibit]:
    """Return `evaluation.exhibits` of the examples, first those that the SLM got wrong, with the models' answers."""
    scored = server.scored.get("slm")
    chosen = choose(examples, scored.outcomes if scored else {}, server.evaluation.exhibits)
    return _answered([server.pair.modality.exhibit(example) for example in chosen], chosen, server)


def _answered(shown: list[Exhibit], chosen: Sequence[Any], server: Server) -> list[Exhibit]:
    """Return exhibits with the answers of both models to their examples."""
    modality = server.pair.modality
    for role, model in server.pair.models().items():
        model.eval()
        with torch.inference_mode():
            answers = modality.of(role).answers(model, chosen)
        shown = [
            replace(one, answers={**one.answers, role: answer}) for one, answer in zip(shown, answers, strict=True)
        ]
    return shown


def choose(examples: Sequence[Any], outcomes: Mapping[str, float], count: int) -> list[Any]:
    """Return examples of which half are wrong, or as many as there are; the wrong ones come first.

    Within each half, the order is that of a digest of their ids: it looks random, and is the same in every run.

    Args:
        examples: the examples.
        outcomes: id of an example to its value of the main metric; 1 and more is right, and so is an unknown one.
        count: how many to choose.
    """
    shuffled = sorted(examples, key=lambda example: hashlib.sha256(example.id.encode("utf-8", "replace")).digest())
    wrong = [example for example in shuffled if outcomes.get(example.id, 1.0) < 1]
    right = [example for example in shuffled if outcomes.get(example.id, 1.0) >= 1]
    of_wrong = min(len(wrong), max(count - count // 2, count - len(right)))
    return list(itertools.islice(itertools.chain(wrong[:of_wrong], right), count))
