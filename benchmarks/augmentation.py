"""What augmentation gives: accuracy with and without it, for few and for many examples per client.

    python -m benchmarks.augmentation OUT.json [CONFIG ...] [--sizes 16,64,320] [--seeds 0,1,2] [--methods fedcollm]
        [--kinds none,default] [--epochs N]

CONFIG is a preset or a YAML file; by default icd10, digits and spoken_words. Private data is divided evenly (iid, or by
the data's own groups), so that every client has the stated number of examples. `--kinds` lists what is compared:
`none`, `default` (what suits the task), one name, or several that are joined by +, such as `crop+color`. A run that
OUT.json has already is not repeated. The table gives means over seeds, and the gain over `none` with its standard
error. Without `--epochs`, clients train for as many epochs per round as the configuration says.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedcollm import RunConfig, load_config, run
from fedcollm.config import baselines
from fedcollm.storage import write_atomically

#: Method to the function that makes its configuration.
METHODS = {"fedcollm": baselines.fedcollm, "fedavg": baselines.fedavg, "fedavg_ce": baselines.fedavg_ce}

#: Task to sizes with which 320 examples per client leave the same public set and test set as fewer do.
SIZES: Mapping[str, Mapping[str, Any]] = {"digits": {"clients": 3, "public_size": 400, "test_size": 400}}


def configuration(source: str, size: int, seed: int, kinds: str, epochs: int | None = None) -> RunConfig:
    """Return the configuration of one run, before a method changes it."""
    config = load_config(source)
    values: dict[str, Any] = {"seed": seed, "client.epochs": epochs or config.client.epochs, "task.private_size": size}
    values |= {f"task.{key}": value for key, value in SIZES.get(config.task.name, {}).items()}
    values |= {"evaluation.clients": "last", "evaluation.every": config.federation.rounds, "evaluation.exhibits": 0}
    if config.task.partition.kind != "natural":
        values["task.partition.kind"] = "iid"
    if kinds != "none":
        values["client.augmentation"] = {} if kinds == "default" else {"kinds": kinds.split("+")}
    return load_config(source, **values)


def keys(given: argparse.Namespace) -> Iterator[tuple[str, int, str, str, int]]:
    """Yield task, size, kinds, method and seed of every run; the seeds of a row come last."""
    for source in given.configs:
        for size in given.sizes:
            for method in given.methods:
                for seed in given.seeds:
                    yield from ((source, size, kinds, method, seed) for kinds in given.kinds)


def measure(config: RunConfig, method: str) -> dict[str, Any]:
    """Return the scores after the last round, and what the run took."""
    (made,) = METHODS[method](config).values()
    start, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as place:
        records = run(made, Path(place) / "run").records
    seconds = {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    return {"scores": dict(records[-1].scores), **seconds}


def table(results: Mapping[str, Any]) -> list[str]:
    """Return the rows of a table in Markdown, with the gain over the same runs without augmentation.

    >>> one = {"scores": {"slm": 0.5}}
    >>> table({"icd10|16|none|fedavg|0|4": one, "icd10|16|default|fedavg|0|4": {"scores": {"slm": 0.75}}})[2:]
    ['| icd10 | 16 | fedavg | none | slm | 50.0 | |', '| icd10 | 16 | fedavg | default | slm | 75.0 | +25.0 |']
    """
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for key, value in results.items():
        task, size, kinds, method, seed, epochs = key.split("|")
        for role, score in value["scores"].items():
            rows.setdefault((task, size, method, epochs, role, kinds), {})[seed] = 100 * score
    lines = [
        "| task | examples per client | method | augmentation | role | accuracy | gain |",
        "|---|--:|---|---|---|--:|--:|",
    ]
    for (task, size, method, epochs, role, kinds), scores in rows.items():
        without = rows.get((task, size, method, epochs, role, "none"), {})
        gains = [score - without[seed] for seed, score in scores.items() if seed in without and kinds != "none"]
        said = f" {statistics.mean(gains):+.1f}" if gains else ""
        if len(gains) > 1:
            said += f" ± {statistics.stdev(gains) / len(gains) ** 0.5:.1f}"
        lines.append(
            f"| {task} | {size} | {method} | {kinds} | {role} | {statistics.mean(scores.values()):.1f} |{said} |"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("configs", nargs="*", default=["icd10", "digits", "spoken_words"])
    for name, default in (("sizes", "16,64,320"), ("seeds", "0,1,2")):
        parser.add_argument(f"--{name}", default=default, type=lambda text: [int(one) for one in text.split(",")])
    for name, default in (("methods", "fedcollm"), ("kinds", "none,default")):
        parser.add_argument(f"--{name}", default=default, type=lambda text: text.split(","))
    parser.add_argument("--epochs", type=int)
    given = parser.parse_args(arguments)
    results: dict[str, Any] = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    for source, size, kinds, method, seed in keys(given):
        key = f"{Path(source).stem}|{size}|{kinds}|{method}|{seed}|{given.epochs}"
        if key not in results:
            results[key] = measure(configuration(source, size, seed, kinds, given.epochs), method)
            write_atomically(given.out, json.dumps(results, indent=1) + "\n")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
