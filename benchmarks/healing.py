"""What healing buys: layer choices × pieces of text → fit of the SLM, and final scores of both roles.

    python -m benchmarks.healing OUT [--sizes 0,480,1920,9600] [--choices even,edges,block] [--seeds 0]
      [--method fedcollm]

Every finished part is kept in OUT, so that the same command continues. Ends with a table in Markdown, and writes
OUT/healing.json and OUT/healing.html (a plot).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from fedcollm.config import RunConfig
from fedcollm.config.baselines import changed
from fedcollm.config.loading import load_config
from fedcollm.config.methods import METHODS
from fedcollm.models.adapters import resolve_device
from fedcollm.runs import directory as directories
from fedcollm.runs.build import Inputs
from fedcollm.runs.runner import rounds
from fedcollm.runs.shrink import shrink_report, shrunk

#: Name of a choice of ten layers to the keys of the section `slm`.
CHOICES: dict[str, dict[str, Any]] = {
    "even": {"layers": 10},
    "edges": {"layers": [0, 1, 2, 23, 24, 25, 26, 27, 28, 29]},
    "block": {"layers": 10, "layer_choice": "block"},
    "influence": {"layers": 10, "layer_choice": "influence"},
}
#: Pieces of text per healing; 0 only cuts.
SIZES = (0, 480, 1920, 9600)


def cell(config: RunConfig, choice: str, size: int) -> RunConfig:
    """Return a configuration with one choice of layers and one size of healing."""
    slm = config.slm.model_dump()
    heal = (slm["heal"] or {}) | ({"size": size} if size else {"epochs": 0})
    return changed(config, {"slm": slm | {"layer_choice": "even"} | CHOICES[choice] | {"heal": heal}})


def measured(config: RunConfig, out: Path, seed: int, method: str) -> dict[str, Any]:
    """Return the fit of the SLM, and the final scores of a run with it."""
    seeded = METHODS[method].configure(config.model_copy(update={"seed": seed}))[""]
    section = shrunk(seeded.slm, resolve_device(seeded.device))
    report = shrink_report(Path(section.source))
    exists = (out / directories.CONFIG).exists()
    records = list(rounds(seeded, out, Inputs(shared=out.parent / ".shared"), resume=exists))
    return {
        "layers": report.layers,
        "kl": report.healed.kl,
        "perplexity": report.healed.perplexity,
        "zero_shot": records[0].scores.get("slm"),
        "slm": records[-1].scores["slm"],
        "llm": records[-1].scores["llm"],
    }


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Plot final scores against the KL that healing left, one line per choice and role."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    for choice in dict.fromkeys(row["choice"] for row in rows):
        own = [row for row in rows if row["choice"] == choice]
        for role, dash in (("slm", "solid"), ("llm", "dot")):
            points = {"x": [row["kl"] for row in own], "y": [row[role] for row in own]}
            text = [f"{row['size']} pieces" for row in own]
            line = {"dash": dash}
            figure.add_scatter(**points, text=text, name=f"{role.upper()}, {choice}", line=line, mode="lines+markers")
    figure.update_layout(xaxis_title="KL(LLM ‖ SLM) per token after healing (nats)", yaxis_title="accuracy")
    figure.update_xaxes(type="log")
    figure.write_html(file, include_plotlyjs=True)


def main() -> None:
    """Measure every cell that is not finished, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--choices", default="even,edges,block")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--method", default="fedcollm")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    base = load_config("icd10", **{"evaluation.every": 5, "evaluation.clients": "never"})
    for choice in given.choices.split(","):
        for size in map(int, given.sizes.split(",")):
            for seed in map(int, given.seeds.split(",")):
                place = given.out / f"{choice}-{size}" / f"seed-{seed}"
                found = measured(cell(base, choice, size), place, seed, given.method)
                rows.append({"choice": choice, "size": size, "seed": seed} | found)
                (given.out / "healing.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                print(rows[-1], flush=True)
    plot(rows, given.out / "healing.html")
    print("| layers | pieces | seed | KL (nats) | perplexity | SLM zero-shot | SLM | LLM |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        numbers = [f"{row[key]:.3f}" for key in ("kl", "perplexity", "zero_shot", "slm", "llm")]
        print("| " + " | ".join([row["choice"], str(row["size"]), str(row["seed"]), *numbers]) + " |")


if __name__ == "__main__":
    main()
