"""What each format of an export takes and loses: size, accuracy, new tokens per second, peak memory.

    OMP_NUM_THREADS=1 python -m benchmarks.exports RUN_DIR OUT [--formats gguf:q8_0,onnx:int8] [--keep]

Every finished format is kept in OUT, so that the same command continues. Ends with a table in Markdown, and writes
OUT/exports.json. Memory and speed are measured in a process that does nothing else.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import fedcollm
from fedcollm import ExportOptions

#: The formats of the table, each with its quantization.
FORMATS = "merged:base,gguf:f16,gguf:q8_0,gguf:q4_0,onnx:fp32,onnx:int8"


def measured(run: Path, out: Path, format: str, keep: bool) -> dict[str, Any]:
    """Return the comparison of one format with its source, from OUT if it is there."""
    name, _, quantization = format.partition(":")
    result, place = out / f"{name}-{quantization}.json", out / f"{name}-{quantization}"
    if not result.exists():
        shutil.rmtree(place, ignore_errors=True)
        done = fedcollm.export(run, place, ExportOptions(format=name, quantization=quantization))
        assert done.check is not None
        result.write_text(json.dumps(done.check.to_json()) + "\n", encoding="utf-8")
    if not keep:
        shutil.rmtree(place, ignore_errors=True)
    return json.loads(result.read_text(encoding="utf-8"))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the table in Markdown; the source is measured once per format, and the fastest time counts."""
    first = next(iter(rows.values()))
    columns = ["bytes", "score", "tokens_per_second", "tokens_per_cpu_second", "peak_memory_bytes"]
    source = max((row["source"] for row in rows.values()), key=lambda one: one["tokens_per_cpu_second"] or 0)
    lines = [
        f"| format | MB | {first['metric']} | tokens/s | tokens per CPU second | peak MB | agree | difference |",
        "|" + "---|" * 8,
    ]
    for name, one, row in [("source", source, None), *((name, row["export"], row) for name, row in rows.items())]:
        size, score, speed, busy, memory = (one[column] for column in columns)
        ends = "" if row is None else f"{100 * row['agreement']:.1f} % | {row['largest_difference']:.2f}"
        rest = f"{speed:.1f} | {busy:.1f} | {memory / 1e6:.0f}" if memory else "– | – | –"
        lines.append(f"| {name} | {size / 1e6:.1f} | {score:.4f} | {rest} | {ends or '– | –'} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every format, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--keep", action="store_true", help="keep the exported files")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    formats = arguments.formats.split(",")
    rows = {one: measured(arguments.run, arguments.out, one, arguments.keep) for one in formats}
    (arguments.out / "exports.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
