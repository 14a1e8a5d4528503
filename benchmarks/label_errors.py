"""How well are wrong labels found? Precision and recall on known flips at 5, 20, 40 and 60 %.

    python -m benchmarks.label_errors OUT [--shared ../shared/data] [--cases icd10,blood_cells,spoken_digits]
        [--predictors ngrams,slm_features,slm_tuned,global] [--seeds 0,1,2]

A case is data of one client: two hospitals of `icd10` with 320 diagnoses each on average, 300 crops of blood cells, or
300 recordings of spoken digits. A share of its labels is flipped, each to another class of the client at random.
A predictor says how likely each class is for each example without having seen its label:

- `ngrams`: `out_of_fold` on the features that need no network (n-grams; pixels and edges; loudness of bands);
- `slm_features`: the same on the last hidden states of the untrained SLM (`icd10` only);
- `slm_tuned`: the SLM, fine-tuned on four fifths and asked about the last fifth, five times (`icd10`, one client);
- `global`: the SLM of FedAvg over four hospitals, of which the audited one has the flips (`icd10`, one client). It has
  seen the labels that it judges.

Both rules of `fedcollm.data.audit.labels` are measured, and what a rule with the true number of flips would reach
(`ranking`). Each line of OUT/label_errors.jsonl is one measurement; what is there already is not measured again.
"""

import argparse
import json
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedcollm.config.loading import load_config
from fedcollm.data.audit.features import features
from fedcollm.data.audit.findings import Record, Subject
from fedcollm.data.audit.labels import RULES, out_of_fold, suspects
from fedcollm.data.catalogue import load_pool
from fedcollm.data.partition import split
from fedcollm.data.pool import Pool

RATES = (0.05, 0.2, 0.4, 0.6)

#: Rounds of FedAvg and epochs of fine-tuning, and folds of the latter.
ROUNDS, EPOCHS, FOLDS = 4, 4, 5


@dataclass(frozen=True)
class Case:
    """The data of one client.

    Attributes:
        name: name of the case, with its seed.
        subject: the records.
        labels: [N] the true classes, from 0.
        examples: the same as examples of a run; nothing if there is no run.
        beside: the other clients of the federation.
        split: the whole split.
    """

    name: str
    subject: Subject
    labels: Any
    examples: Any = ()
    beside: Mapping[str, Any] | None = None
    split: Any = None


def icd10(shared: Path, seed: int) -> Iterator[Case]:
    """Yield two hospitals of the default task."""
    config = load_config("icd10", **{"seed": seed, "task.private_size": 320, "task.unlabelled_size": 0})
    parts = split(load_pool(config.task, seed), config.task, seed)
    for client in ("0", "1"):
        some = parts.private[client]
        others = {name: examples for name, examples in parts.private.items() if name != client}
        labels = [example.label for example in some]
        records = [Record(Path(), i, "", example.text, example.label) for i, example in enumerate(some)]
        yield Case(f"icd10/{seed}/{client}", Subject("text", records), _codes(labels), some, others, parts)


def blood_cells(shared: Path, seed: int) -> Iterator[Case]:
    """Yield 300 crops, 100 of each class."""
    import io

    from PIL import Image

    from benchmarks.blood_cells import balanced, boxes

    folder = shared / "blood_cells"
    cells, _ = boxes(json.loads((folder / "train.json").read_text(encoding="utf-8")))
    records: list[Record] = []
    with zipfile.ZipFile(folder / "images.zip") as archive:
        for name, kind, (x, y, width, height) in balanced(cells, 100, seed):
            with Image.open(io.BytesIO(archive.read(name))) as photo:
                edges = (max(x, 0), max(y, 0), min(x + width, photo.width), min(y + height, photo.height))
                stream = io.BytesIO()
                photo.convert("RGB").crop(tuple(map(round, edges))).save(stream, "PNG")
            records.append(Record(Path(), 0, "", "", kind, {}, stream.getvalue()))
    yield Case(f"blood_cells/{seed}", Subject("image_files", records), _codes([one.label for one in records]))


def spoken_digits(shared: Path, seed: int) -> Iterator[Case]:
    """Yield 300 recordings of six speakers."""
    records: list[Record] = []
    with zipfile.ZipFile(shared / "spoken_digits" / "recordings.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".wav"))
        for i in sorted(np.random.default_rng(seed).choice(len(names), 300, replace=False).tolist()):
            digit = Path(names[i]).name.partition("_")[0]
            records.append(Record(Path(), 0, names[i], "", digit, {}, archive.read(names[i])))
    yield Case(f"spoken_digits/{seed}", Subject("audio_files", records), _codes([one.label for one in records]))


CASES: Mapping[str, Callable[[Path, int], Iterator[Case]]] = {
    "icd10": icd10,
    "blood_cells": blood_cells,
    "spoken_digits": spoken_digits,
}


def _codes(labels: list[Any]) -> Any:
    classes = sorted(set(labels))
    return np.array([classes.index(label) for label in labels], dtype=np.int64)


def flipped(labels: Any, rate: float, seed: int) -> Any:
    """Return labels of which a share is another class, at random."""
    draw, classes = np.random.default_rng(seed), int(labels.max()) + 1
    noisy = labels.copy()
    for i in draw.choice(len(labels), round(rate * len(labels)), replace=False):
        noisy[i] = draw.choice([code for code in range(classes) if code != labels[i]])
    return noisy


def ngrams(case: Case, noisy: Any, out: Path) -> Any:
    """Return out-of-fold probabilities by features that need no network."""
    return out_of_fold(features(case.subject, range(len(noisy))), noisy, int(case.labels.max()) + 1)


def slm_features(case: Case, noisy: Any, out: Path) -> Any:
    """Return out-of-fold probabilities by the last hidden states of the untrained SLM."""
    from fedcollm.config import StatisticsConfig
    from fedcollm.data.catalogue import build_modality
    from fedcollm.runs.build_models import build_slm
    from fedcollm.runs.shrink import with_shrunk_models

    config = with_shrunk_models(load_config("icd10"), None)
    modality = build_modality(config.task, config.slm, config.slm, False)
    slm = build_slm(config, modality, [], out / "base")
    rows = modality.evidence(case.examples, StatisticsConfig(features="slm"), slm).rows.numpy()
    return out_of_fold(rows.astype(np.float64), noisy, int(case.labels.max()) + 1)


def _run(case: Case, private: Mapping[str, Any], asked: Any, out: Path, rounds: int, epochs: int) -> Any:
    """Return what the SLM of a run without distillation says of examples, for the classes of the case."""
    import shutil

    from fedcollm.runs.predictor import Predictor
    from fedcollm.runs.runner import run

    examples = [replace(one, group=name) for name, some in private.items() for one in some]
    sizes = {"private_size": len(examples) // len(private), "public_size": 22, "unlabelled_size": 0, "test_size": 22}
    config = load_config(
        "icd10",
        **{f"task.{name}": size for name, size in sizes.items()},
        **{"task.clients": len(private), "task.partition.kind": "natural" if len(private) > 1 else "pooled"},
        **{
            "server.epochs": 0,
            "client.epochs": epochs,
            "federation.rounds": rounds,
            "server.unlabelled_per_round": None,
        },
        **{"evaluation.clients": "never", "evaluation.every": rounds, "evaluation.exhibits": 0},
    )
    shutil.rmtree(out, ignore_errors=True)
    run(config, out, pool=Pool(examples, case.split.test[:22], case.split.public[:22]))
    model = Predictor.load(out / "adapters" / "slm")
    labels = sorted({example.label for example in case.examples})
    predicted = model.predict([{"description": example.prompt.removesuffix(":")} for example in asked])
    rows = np.array([[one.probabilities[label] for label in labels] for one in predicted])
    shutil.rmtree(out, ignore_errors=True)
    return rows / rows.sum(1, keepdims=True)


def _with_labels(case: Case, noisy: Any) -> list[Any]:
    """Return the examples of a case with other labels."""
    labels = sorted({example.label for example in case.examples})
    pairs = zip(case.examples, noisy, strict=True)
    return [example.with_answer(example.labels.index(labels[code])) for example, code in pairs]


def slm_tuned(case: Case, noisy: Any, out: Path) -> Any:
    """Return out-of-fold probabilities by the fine-tuned SLM."""
    examples, found = _with_labels(case, noisy), np.zeros((len(noisy), int(case.labels.max()) + 1))
    for fold in range(FOLDS):
        held = [i for i in range(len(noisy)) if i % FOLDS == fold]
        train = [example for i, example in enumerate(examples) if i % FOLDS != fold]
        found[held] = _run(case, {"0": train}, [examples[i] for i in held], out / "run", 1, EPOCHS)
    return found


def global_model(case: Case, noisy: Any, out: Path) -> Any:
    """Return probabilities by the SLM of FedAvg over four hospitals."""
    private = {"0": _with_labels(case, noisy), **{f"other {name}": some for name, some in (case.beside or {}).items()}}
    return _run(case, private, case.examples, out / "run", ROUNDS, 1)


PREDICTORS: Mapping[str, Callable[[Case, Any, Path], Any]] = {
    "ngrams": ngrams,
    "slm_features": slm_features,
    "slm_tuned": slm_tuned,
    "global": global_model,
}


def measured(case: Case, rate: float, predictor: str, out: Path) -> Iterator[dict[str, Any]]:
    """Yield precision, recall and F1 of each rule, and of a ranking that knows the number of flips."""
    noisy = flipped(case.labels, rate, seed=int(case.name.split("/")[1]))
    wrong, start = noisy != case.labels, time.process_time()
    probabilities = PREDICTORS[predictor](case, noisy, out)
    seconds = time.process_time() - start
    accuracy = float((probabilities.argmax(1) == case.labels).mean())
    own = probabilities[np.arange(len(noisy)), noisy]
    flags = {rule: [one.position for one in suspects(noisy, probabilities, rule)] for rule in RULES}
    flags["ranking"] = np.argsort(own - probabilities.max(1), kind="stable")[: int(wrong.sum())].tolist()
    for rule, found in flags.items():
        hits = int(wrong[found].sum())
        precision, recall = hits / max(len(found), 1), hits / max(int(wrong.sum()), 1)
        yield {
            "case": case.name,
            "rate": rate,
            "predictor": predictor,
            "rule": rule,
            "examples": len(noisy),
            "flagged": len(found),
            "precision": round(precision, 4),
            "recall": round(recall, 4),
            "accuracy": round(accuracy, 4),
            "cpu_seconds": round(seconds, 1),
        }


def table(lines: list[dict[str, Any]]) -> str:
    """Return the means over seeds and clients as Markdown."""
    keys = dict.fromkeys((one["case"].split("/")[0], one["predictor"], one["rule"]) for one in lines)
    rows = [
        "| data | predictor | rule | " + " | ".join(f"{100 * rate:.0f} %" for rate in RATES) + " |",
        "|---" * 7 + "|",
    ]
    for key in keys:
        cells: list[str] = []
        for rate in RATES:
            some = [one for one in lines if (one["case"].split("/")[0], one["predictor"], one["rule"]) == key]
            some = [one for one in some if one["rate"] == rate]
            means = [
                float(np.mean([one[name] for one in some])) if some else np.nan for name in ("precision", "recall")
            ]
            f1 = 2 * means[0] * means[1] / max(sum(means), 1e-9)
            cells.append(f"{means[0]:.2f} / {means[1]:.2f} / {f1:.2f}")
        rows.append(f"| {' | '.join((*key, *cells))} |")
    return "\n".join(rows)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--predictors", default="ngrams,slm_features")
    parser.add_argument("--seeds", default="0,1,2")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / "label_errors.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(one["case"], one["rate"], one["predictor"]) for one in lines}
    for predictor in asked.predictors.split(","):
        for seed in map(int, asked.seeds.split(",")):
            for name in asked.cases.split(","):
                if name != "icd10" and predictor != "ngrams":
                    continue
                for case in CASES[name](asked.shared, seed):
                    if predictor in ("slm_tuned", "global") and not case.name.endswith("/0"):
                        continue
                    for rate in RATES:
                        if (case.name, rate, predictor) not in known:
                            lines += (made := list(measured(case, rate, predictor, asked.out)))
                            with file.open("a") as stream:
                                stream.writelines(json.dumps(one) + "\n" for one in made)
    print(table(lines))


if __name__ == "__main__":
    main()
