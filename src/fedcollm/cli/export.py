"""The command `fedcollm export`: take a trained model away, in a format of other tools."""

import json
from pathlib import Path
from typing import Annotated

from fedcollm.cli.options import Json, Quiet, argument, option


def export(
    run_dir: Annotated[Path, argument(metavar="RUN_DIR", help="a run directory, or the directory of an adapter")],
    format: Annotated[str, option("--format", help="adapter, merged (safetensors), gguf (llama.cpp) or onnx")],
    out: Annotated[Path, option("--out", help="a new directory")],
    role: Annotated[str, option("--role", help="slm or llm")] = "slm",
    with_base: Annotated[bool, option("--with-base", help="adapter: its base goes along")] = False,
    quantization: Annotated[
        str | None, option("--quantization", help="gguf: f16, q8_0, q4_0, ...; onnx: fp32, int8; merged: a dtype")
    ] = None,
    margin: Annotated[
        float | None, option("--margin", min=0.0, help="largest loss of accuracy; default: 0.02, below 8 bits none")
    ] = None,
    examples: Annotated[
        Path | None, option("--examples", help="JSONL to compare on, as evaluate --write-examples writes it")
    ] = None,
    no_check: Annotated[bool, option("--no-check", help="do not compare the export with its source")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Write a trained model for other tools, and compare it with its source; exits with 1 if it lost too much."""
    from fedcollm.cli.terminal import screen
    from fedcollm.exports.export import ExportOptions, export
    from fedcollm.progress import say, shown

    options = ExportOptions(role, format, quantization, with_base, margin, examples, not no_check)
    with shown(screen(quiet or as_json)):
        done = export(run_dir, out, options)
        failures = [] if done.check is None else done.check.failures
        for failure in failures:
            say(failure)
    if as_json:
        check = None if done.check is None else done.check.to_json()
        print(json.dumps({"out": str(done.directory), "file": done.file.name, "check": check}))
    elif not quiet:
        print(done.file)
    return 1 if failures else 0
