"""What a model takes where nothing else runs: size on disk, peak memory, and how fast it generates.

It is measured in a process of its own, `python -m fedcollm.exports.footprint KIND PLACE TOKENS`, which imports only
what a device needs that runs the model: llama.cpp or onnxruntime for their files, torch and transformers for all
others.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

#: New tokens of the text that is generated.
NEW_TOKENS = 32

#: New tokens per second, by the clock and by the processor's time.
Speed = tuple[float, float]


@dataclass(frozen=True)
class Footprint:
    """What a model takes.

    Attributes:
        bytes: size on disk.
        peak_memory_bytes: peak resident memory of a process that does nothing but run it; None if not measured.
        tokens_per_second: new tokens per second of one text; None if not measured.
        tokens_per_cpu_second: the same per second of a processor's time, which other processes do not change.
    """

    bytes: int
    peak_memory_bytes: int | None = None
    tokens_per_second: float | None = None
    tokens_per_cpu_second: float | None = None


def size_of(*places: Path) -> int:
    """Return the bytes of files, and of the weights in directories."""
    kinds = (".safetensors", ".gguf", ".onnx", ".data", ".bin")
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return sum(file.stat().st_size for file in files if file.suffix in kinds)


def measure(kind: str, place: Path, tokens: Sequence[int], bytes: int) -> Footprint:
    """Return what a language model takes, by a process of its own; its size alone if that process fails.

    Args:
        kind: a key of `RUNNERS`.
        place: its file or directory.
        tokens: the tokens of a prompt.
        bytes: its size.
    """
    command = [sys.executable, "-m", "fedcollm.exports.footprint", kind, str(place), json.dumps(list(tokens))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        memory, speed, speed_of_cpu = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return Footprint(bytes)
    return Footprint(bytes, memory, speed, speed_of_cpu)


def _with_llama_cpp(place: Path, tokens: list[int]) -> Speed:
    library: Any = import_module("llama_cpp")
    model: Any = library.Llama(
        str(place), n_ctx=len(tokens) + NEW_TOKENS, n_threads=_threads(), n_threads_batch=_threads(), verbose=False
    )
    return _speed(lambda known, new: model.eval(new), lambda: int(model.sample(temp=0.0)), tokens)


def _with_onnxruntime(place: Path, tokens: list[int]) -> Speed:
    import numpy as np

    library: Any = import_module("onnxruntime")
    options = library.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = _threads(), 3
    session: Any = library.InferenceSession(str(place), options, providers=["CPUExecutionProvider"])
    shapes = {one.name: one.shape for one in session.get_inputs() if one.name.startswith("past_")}
    past = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}
    last: list[int] = [0]

    def read(known: int, new: Sequence[int]) -> None:
        inputs = {
            "input_ids": np.array([new]),
            "attention_mask": np.ones((1, known + len(new)), np.int64),
            "position_ids": np.arange(known, known + len(new))[None],
        }
        logits, *present = session.run(None, inputs | past)
        past.update(zip(list(past), present, strict=True))
        last[0] = int(logits[0, -1].argmax())

    return _speed(read, lambda: last[0], tokens)


def _with_torch(place: Path, tokens: list[int]) -> Speed:
    import torch

    from fedcollm.runs.predictor import Predictor

    model: Any = Predictor.load(place, "cpu").model
    network: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    state: dict[str, Any] = {"past": None, "last": 0}

    @torch.inference_mode()
    def read(known: int, new: Sequence[int]) -> None:
        answer = network(input_ids=torch.tensor([list(new)]), past_key_values=state["past"], use_cache=True)
        state.update(past=answer.past_key_values, last=int(answer.logits[0, -1].argmax()))

    return _speed(read, lambda: state["last"], tokens)


def _speed(read: Callable[[int, Sequence[int]], object], likeliest: Callable[[], int], tokens: Sequence[int]) -> Speed:
    """Return the numbers of new tokens per second after a prompt was read."""
    read(0, tokens)
    start, busy = time.perf_counter(), time.process_time()
    for known in range(len(tokens), len(tokens) + NEW_TOKENS - 1):
        read(known, [likeliest()])
    new = NEW_TOKENS - 1
    return new / (time.perf_counter() - start), new / (time.process_time() - busy)


def _threads() -> int:
    import os

    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


#: What computes a model, to how it does so.
RUNNERS: Mapping[str, Callable[[Path, list[int]], Speed]] = {
    "llama_cpp": _with_llama_cpp,
    "onnxruntime": _with_onnxruntime,
    "torch": _with_torch,
}


def main(kind: str, place: str, tokens: str) -> None:
    """Print peak memory in bytes, and new tokens per second by the clock and by the processor, as JSON."""
    speed = RUNNERS[kind](Path(place), json.loads(tokens))
    print(json.dumps([_peak_bytes(), *speed]))


def _peak_bytes() -> int:
    """Return the peak resident memory of this process.

    Linux counts what the parent had before this program began in `ru_maxrss`, but not in the high-water mark.
    """
    from fedcollm.metrics import peak_memory_bytes

    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    marks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    return marks[0] if marks else peak_memory_bytes()


if __name__ == "__main__":
    main(*sys.argv[1:])
