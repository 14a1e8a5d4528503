"""PEFT adapters on frozen base models; the only module that reads or writes an adapter."""

import contextlib
import warnings
import weakref
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from fedcollm.config import AdapterConfig
from fedcollm.config.adapter_options import options_of_size
from fedcollm.errors import UserError
from fedcollm.messages import Adapter, misfit, misshapen
from fedcollm.models.core import add_cores, has_cores, plain_state
from fedcollm.models.peft_config import check_partial, peft_config, train_whole
from fedcollm.models.sent_parameters import check_sent
from fedcollm.storage import replacing_directory

if TYPE_CHECKING:
    import peft

_HEADS = ("head", "classifier", "lm_head", "score")  # names of output layers, which get no adapter
_WEIGHTS = "adapter_model.safetensors"
_ACTIVE = ".default"  # PEFT's name of the adapter within parameter names; adapter files leave it out
_WHOLE = ".modules_to_save"  # PEFT's name of a module that is trained as a whole; adapter files leave it out too


def resolve_device(device: str) -> torch.device:
    """Return the device that a configuration names; `auto` is CUDA if a GPU is available, and the CPU otherwise.

    Raises:
        UserError: torch does not know the device, or this machine does not have it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).item()  # fails on `meta`, which has no memory
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device: {device!r} can't be used: {str(error).splitlines()[0]}. Set device: auto or cpu."
        ) from error
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype that a configuration names.

    `auto` is bfloat16 if the hardware multiplies it natively, and float32 otherwise: a CPU without AVX512-BF16 or AMX
    emulates bfloat16 products, several times slower than float32.
    """
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def add_adapter(
    base: nn.Module,
    section: AdapterConfig = AdapterConfig(),
    *,
    seed: int = 0,
    causal_lm: bool = True,
    base_name: str | None = None,
    whole: Sequence[str] = (),
) -> "peft.PeftModel":
    """Freeze a base model and give it a trainable adapter.

    With `freeze_a`, LoRA's A keeps its random initial values, and only B is trained and sent (FFA-LoRA, Sun et al.,
    arXiv 2403.12313). The mean of B_k A is then exactly (mean of B_k) A. All parties have the same A because they use
    the same seed. With `core`, only r x r values per layer are trained and sent; see `models.core`.

    Args:
        base: any network, such as a transformers model; it is frozen in place.
        section: the PEFT method, its sizes and its target modules. With `targets: auto`, these are all linear layers
            except the head; for a method without a rank, they are PEFT's default.
        seed: seed of the adapter's initial values.
        causal_lm: whether to set PEFT's task type CAUSAL_LM.
        base_name: the path or hub id of the base, which PEFT writes to adapter files.
        whole: names of modules of the base that are trained as a whole and belong to the adapter (`modules_to_save`).

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: the method, an option or a target module does not exist, or `freeze_a`, `core` or `whole` does not
            fit the method, or a part of the base, an embedding or an output layer over words would be trained.
    """
    import peft  # takes seconds, as transformers does
    from transformers import PreTrainedModel

    check_partial(section)
    config = peft_config(section)
    if whole:
        train_whole(config, section, whole)
    if getattr(config, "target_modules", None) == "all-linear" and not isinstance(base, PreTrainedModel):
        config.target_modules = _linear_layers(base)
    config.task_type = peft.TaskType.CAUSAL_LM if causal_lm else None
    cast(Any, torch).manual_seed(seed)
    frozen = list(base.parameters())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # raised by transformers for a name that PEFT uses
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # PEFT corrects this for GPT-2 by itself
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")  # refused below
            model: Any = cast(Any, peft).get_peft_model(base, config)
    except ValueError as error:
        raise UserError(
            f"adapter.targets: {section.targets!r} does not fit this model ({error}). "
            f"Choose from its linear layers: {', '.join(_linear_names(base))}"
        ) from error
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"adapter: one of rank {section.rank} on this model can't be made ({reason:.200}). "
            "Lower adapter.rank, or the numbers in adapter.options."
        ) from error
    for name, parameter in model.named_parameters():
        if section.freeze_a and "lora_A" in name:
            parameter.requires_grad_(False)
    if section.core:
        add_cores(model)
    check_sent(model, frozen, whole)
    model.peft_config["default"].base_model_name_or_path = base_name
    _show_geometry(model)
    return model.eval()


def _show_geometry(model: nn.Module) -> None:
    """Give adapted convolutions the attributes of their base layers, which MobileNetV2 reads to pad its images."""
    for _, module in _named_modules(model):
        base = getattr(module, "base_layer", None)
        for name in ("stride", "kernel_size", "dilation") if isinstance(base, nn.Conv2d) else ():
            setattr(module, name, getattr(base, name))


def _named_modules(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    return cast(Any, model).named_modules()


def _linear_layers(base: nn.Module) -> list[str]:
    """Return the names of a network's linear layers except its head, as PEFT finds them in models of transformers."""
    names = [name for name, module in _named_modules(base) if type(module) is nn.Linear]
    return [name for name in names if name.rsplit(".", 1)[-1] not in _HEADS]


def _linear_names(base: nn.Module) -> list[str]:
    """Return the last part of the names of all linear layers, sorted, each once."""
    linear = ("Linear", "Conv1D")
    return sorted({name.rsplit(".", 1)[-1] for name, module in _named_modules(base) if type(module).__name__ in linear})


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters themselves, under the names that PEFT's adapter files use."""
    return {name: p for name, p in _named_parameters(model) if p.requires_grad}


#: The parameters of each model by name. A round asks for them twice per client, and to collect them takes 1 ms.
_NAMED: "weakref.WeakKeyDictionary[nn.Module, list[tuple[str, nn.Parameter]]]" = weakref.WeakKeyDictionary()


def _named_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return all parameters under the names that PEFT's adapter files use, collected once per model with an adapter."""
    import peft

    if not isinstance(model, peft.PeftModel):  # such a model may still change
        return [(_file_name(name), p) for name, p in model.named_parameters()]
    if model not in _NAMED:
        _NAMED[model] = [(_file_name(name), p) for name, p in model.named_parameters()]
    return _NAMED[model]


def _file_name(name: str) -> str:
    return name.replace(_ACTIVE, "").replace(_WHOLE, "")


def read_adapter(model: nn.Module) -> Adapter:
    """Return copies of the trainable parameters, on the CPU, under the names that PEFT's adapter files use."""
    return {name: p.detach().to("cpu", copy=True) for name, p in trainable(model).items()}


def write_adapter(model: nn.Module, adapter: Adapter, finite: bool = False) -> None:
    """Set the values of all trainable parameters.

    Args:
        model: the model whose parameters are set.
        adapter: the values.
        finite: whether all values are already known to be finite.

    Raises:
        ValueError: a tensor is missing, unknown or not finite, or has another shape or dtype. The model is unchanged.
    """
    parameters = trainable(model)
    if reason := (misshapen if finite else misfit)(adapter, parameters):
        raise ValueError(f"the adapter does not fit the model: {reason}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(adapter[name])


@contextlib.contextmanager
def without_adapter(model: nn.Module) -> Generator[None, None, None]:
    """Let a model compute as its base alone; without an adapter, it does so anyway."""
    import peft

    if not isinstance(model, peft.PeftModel):
        yield
        return
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        with cast(Any, model).disable_adapter():
            yield
    finally:  # PEFT makes the whole adapter trainable again, also a frozen A
        for parameter, requires_grad in trained.items():
            parameter.requires_grad_(requires_grad)


def save_adapter(model: "peft.PeftModel", adapter: Adapter, directory: Path) -> None:
    """Write an adapter in PEFT's own format, and replace the directory as a whole. Only its owner can read it.

    Args:
        model: the model that the adapter belongs to; its parameters are set to the adapter's values.
        adapter: the values.
        directory: where to write.
    """
    write_adapter(model, adapter)
    state: dict[str, Any] = {"state_dict": plain_state(model)} if has_cores(model) else {}
    with replacing_directory(directory) as temporary:
        model.save_pretrained(str(temporary), save_embedding_layers=False, **state)


def check_rank(section: AdapterConfig, directory: Path) -> None:
    """Refuse a rank that an adapter's file does not have, before memory is taken for it.

    Raises:
        UserError: no tensor of the file is as large as the rank.
    """
    file = directory / _WEIGHTS
    if not file.is_file():
        return
    try:
        with cast(Any, safetensors).safe_open(file, "pt") as opened:
            names: list[str] = list(opened.keys())
            sizes = {int(size) for name in names for size in opened.get_slice(name).get_shape()}
    except SafetensorError:
        return  # `load_adapter` says so
    rank = max([section.rank, *options_of_size(section.options)])
    if sizes and rank > max(sizes):
        raise UserError(
            f"the adapter at {directory} has no rank of {rank}: its largest tensor dimension is {max(sizes)}. Restore "
            "its files from a copy."
        )


def load_adapter(model: "peft.PeftModel", directory: Path) -> None:
    """Set a model's adapter to that of a directory in PEFT's format.

    Raises:
        UserError: the file is missing or broken, or it does not fit the model.
    """
    import peft

    file, library = directory / _WEIGHTS, cast(Any, peft)  # has no complete type annotations
    if not file.is_file():
        raise UserError(
            f"no adapter at {directory}: {file.name} is missing. Give a run directory with at least one finished round."
        )
    try:
        state: Adapter = cast(Any, safetensors.torch).load_file(file)
    except SafetensorError as error:
        raise UserError(f"the adapter at {directory} can't be read: {error}. Restore it from a copy.") from error
    expected: Adapter = library.get_peft_model_state_dict(model, save_embedding_layers=False)
    shapes, wanted = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (state, expected))
    if odd := sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name)):
        there, here = shapes.get(odd[0], "missing"), wanted.get(odd[0], "missing")
        raise UserError(
            f"the adapter at {directory} does not fit the model: tensor {odd[0]} is {there} in the file and {here} in "
            "the model. Give the adapter and the model of the same run."
        )
    library.set_peft_model_state_dict(model, state)


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Return the number of trainable parameters and that of the frozen base's; a frozen A counts as neither."""
    adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return adapter, sum(p.numel() for name, p in model.named_parameters() if not _is_adapter(name, p))


def _is_adapter(name: str, parameter: nn.Parameter) -> bool:
    return parameter.requires_grad or _ACTIVE in name
