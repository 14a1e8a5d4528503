"""An ONNX file for onnxruntime: a language model with a cache, or a classifier or detector of images or recordings."""

import contextlib
import logging
import warnings
from collections.abc import Generator, Mapping, Sequence
from importlib import import_module, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedcollm.errors import UserError
from fedcollm.exports.onnx_blocks import write_in_blocks
from fedcollm.exports.onnx_graph import Graph, causal_graph, recorded_graph
from fedcollm.exports.runtime import Runtime, TokenRuntime
from fedcollm.exports.source import DEVICE, Source
from fedcollm.modalities.base import Modality
from fedcollm.modalities.text.task import TextTask
from fedcollm.progress import say
from fedcollm.runs.predictor import Predictor

#: Loggers that tell about every operator of torchvision, which is not installed.
_CHATTY = ("torch.onnx", "onnxscript", "onnx_ir", "torch.onnx._internal.exporter._registration")


def write_onnx(source: Source, out: Path, quantization: str, examples: Sequence[Any] = ()) -> Path:
    """Write a model with its adapter merged as an ONNX file, and what reads its input; return the file.

    Args:
        source: the trained model.
        out: an empty directory.
        quantization: `fp32`, or `int8` for matrices and activations in 8 bits, in blocks.
        examples: examples of the task, of which a model that is no language model needs two.

    Raises:
        UserError: a package is missing, or the model can't be written.
    """
    require_packages()
    modality, network = source.network()
    if not isinstance(modality, TextTask) and len(examples) < 2:
        raise UserError("--format onnx needs two examples of this task to record inputs from. Give the run directory.")
    text = isinstance(modality, TextTask)
    graph = causal_graph(network) if text else recorded_graph(network, modality, examples)
    file = out / f"model-{quantization}.onnx"
    plain = file if quantization == "fp32" else out / ".model-fp32.onnx"
    say("writing the graph, which takes a minute or two")
    write_graph(graph, plain)
    if plain != file:
        write_in_blocks(plain, file)
        for left in out.glob(".model-fp32.onnx*"):
            left.unlink()
    source.copy_input_files(modality, out)
    return file


def require_packages() -> None:
    """Refuse to go on without the packages of the extra `export`.

    Raises:
        UserError: one is missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}, which is not installed. Run: pip install 'fedcollm[export]'"
        )


def write_graph(graph: Graph, file: Path) -> None:
    """Write a network as an ONNX file."""
    library, free = cast(Any, torch.onnx), torch.export.Dim.DYNAMIC
    shapes = tuple(dict.fromkeys(graph.dynamic[name], free) for name in graph.inputs)
    given: Any = (*shapes[:3], shapes[3:]) if graph.cached else (shapes,)  # *past and *values are one argument
    with _quiet(), torch.no_grad():
        program: Any = library.export(
            graph.network,
            tuple(graph.inputs.values()),
            dynamo=True,
            dynamic_shapes=given,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
        program.save(str(file))


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keep the exporter from telling about what it skips, which changes nothing for a reader."""
    before = {name: logging.getLogger(name).level for name in (*_CHATTY, "root")}
    for name in before:
        logging.getLogger(name if name != "root" else None).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name if name != "root" else None).setLevel(level)


def session(file: Path) -> Any:
    """Return a session of onnxruntime with as many threads as torch uses."""
    library: Any = import_module("onnxruntime")
    options = library.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    return library.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _tensor(values: Any) -> Tensor:
    return cast(Any, torch).from_numpy(values)


class OnnxNetwork(Runtime):
    """A classifier or detector in an ONNX file.

    Args:
        file: the file.
    """

    def __init__(self, file: Path):
        super().__init__()
        self._session = session(file)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        """Return the outputs under their names."""
        made = self._session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return SimpleNamespace(**dict(zip(self._outputs, map(_tensor, made), strict=True)))


class OnnxLanguageModel(TokenRuntime):
    """A causal language model in an ONNX file, with a cache of keys and values.

    Args:
        file: the file.
    """

    def __init__(self, file: Path):
        super().__init__()
        self._session = session(file)
        self._past: dict[str, Tensor] = {}
        for one in self._session.get_inputs():
            if one.name.startswith("past_"):
                _, heads, _, width = one.shape
                self._past[one.name] = torch.zeros(1, heads, 0, width)

    def extend(self, known: int, tokens: Sequence[int]) -> Tensor:
        """Return [len(tokens), V] logits of tokens that follow the first `known` ones of the sequence before."""
        past = {name: value[:, :, :known].contiguous() for name, value in self._past.items()}
        inputs: Mapping[str, Tensor] = {
            "input_ids": torch.tensor([list(tokens)]),
            "attention_mask": torch.ones(1, known + len(tokens), dtype=torch.int64),
            "position_ids": torch.arange(known, known + len(tokens))[None],
        } | past
        logits, *present = self._session.run(None, {name: value.numpy() for name, value in inputs.items()})
        self._past = dict(zip(past, map(_tensor, present), strict=True))
        return _tensor(logits[0])


def load_onnx(source: Source, file: Path) -> tuple[Modality, nn.Module]:
    """Return the modality and the model in an ONNX file, computed by onnxruntime."""
    modality = Predictor.load(source.directory, DEVICE).modality
    return modality, OnnxLanguageModel(file) if isinstance(modality, TextTask) else OnnxNetwork(file)
