"""Base models with PEFT adapters; the only reader and writer of adapters."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from fedcollm.config import AdapterConfig
from fedcollm.errors import UserError
from fedcollm.messages import Adapter, misfit

_HEADS = ("head", "classifier", "lm_head", "score")  # names of output layers
_ACTIVE = ".default"  # PEFT's name of the adapter inside parameter names; its files leave it out


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        UserError: torch does not know the device, or it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device: {device!r} can't be used: {str(error).splitlines()[0]}. Set device: auto or cpu."
        ) from error
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it natively, else float32.

    A CPU without AVX512-BF16 or AMX emulates bfloat16 products several times slower than float32.
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
) -> peft.PeftModel:
    """Freeze a base model and give it a trainable adapter.

    With `freeze_a`, LoRA's A stays at its random start, so that B alone is trained and travels (FFA-LoRA, Sun et al.,
    arXiv 2403.12313): the mean of B_k A is then (mean of B_k) A, exactly. Parties share A by its seed.

    Args:
        base: any network, such as a transformers model; frozen in place.
        section: method, sizes and targets. Targets `auto` are all linear layers except the head, or PEFT's own choice
            for methods without a rank.
        seed: of the adapter's initial values.
        causal_lm: whether PEFT's task type is CAUSAL_LM.
        base_name: where the base can be loaded from, written to the adapter's files.

    Raises:
        UserError: unknown method, field or target.
    """
    kind, dora = section.kind, bool(section.options.get("use_dora"))
    if section.freeze_a and (dora or kind.lower() != "lora"):
        what = f"{kind} with use_dora has more to train than B" if dora else f"{kind} is not plain LoRA"
        raise UserError(f"adapter.freeze_a: {what}; set adapter.kind: lora without use_dora, or freeze_a: false.")
    config = _peft_config(section)
    if getattr(config, "target_modules", None) == "all-linear" and not isinstance(base, PreTrainedModel):
        config.target_modules = _linear_layers(base)
    config.task_type = peft.TaskType.CAUSAL_LM if causal_lm else None
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers' own, about a name that peft uses
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft corrects it for GPT-2 itself
            model = peft.get_peft_model(base, config)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        names = sorted(
            {name.rsplit(".", 1)[-1] for name, m in base.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
        )
        raise UserError(
            f"adapter.targets: {section.targets!r} does not fit this model ({error}). "
            f"Its linear layers: {', '.join(names)}"
        ) from error
    for name, parameter in model.named_parameters():
        if section.freeze_a and "lora_A" in name:
            parameter.requires_grad_(False)
    model.peft_config["default"].base_model_name_or_path = base_name
    return model.eval()  # pyright: ignore[reportReturnType]


def _peft_config(section: AdapterConfig) -> Any:
    """Return the PEFT configuration of a method: our few common fields where it has them, and `options`."""
    kind, targets, options = section.kind, section.targets, section.options
    method = "LORA" if kind.lower() == "dora" else kind.upper()
    if method not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = ", ".join(sorted(str(name.value).lower() for name in PEFT_TYPE_TO_CONFIG_MAPPING))
        raise UserError(f"adapter.kind: unknown method {kind!r}. Known: dora, {known}")
    factory = PEFT_TYPE_TO_CONFIG_MAPPING[method]  # pyright: ignore[reportArgumentType]
    fields = set(factory.__dataclass_fields__)
    common: dict[str, Any] = {
        "r": section.rank,
        "rank": section.rank,
        "lora_alpha": section.alpha,
        "alpha": section.alpha,
        "lora_dropout": section.dropout,
    }
    values = {name: value for name, value in common.items() if name in fields}
    if kind.lower() == "dora":
        values["use_dora"] = True
    if "target_modules" in fields and not (targets == "auto" and "r" not in fields):
        values["target_modules"] = (
            "all-linear" if targets == "auto" else targets if isinstance(targets, str) else list(targets)
        )
    if unknown := set(options) - fields:
        raise UserError(
            f"adapter.options: {factory.__name__} has no field {', '.join(sorted(unknown))}. "
            f"It has: {', '.join(sorted(fields))}"
        )
    try:
        return factory(**{**values, **options})
    except (TypeError, ValueError) as error:
        raise UserError(f"adapter: {factory.__name__} refuses these values: {error}") from error


def _linear_layers(base: nn.Module) -> list[str]:
    """Return the names of a network's linear layers except its head, as PEFT finds them in transformers' models."""
    names = [name for name, module in base.named_modules() if type(module) is nn.Linear]
    return [name for name in names if name.rsplit(".", 1)[-1] not in _HEADS]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable tensors themselves, under the names of PEFT's adapter files."""
    return {name.replace(_ACTIVE, ""): p for name, p in model.named_parameters() if p.requires_grad}


def read_adapter(model: nn.Module) -> Adapter:
    """Copies of the trainable tensors, on the CPU, under the names of PEFT's adapter files."""
    return {name: p.detach().cpu().clone() for name, p in trainable(model).items()}


def write_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Set every trainable tensor.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape or dtype, or not finite; the model is then unchanged.
    """
    parameters = trainable(model)
    if reason := misfit(adapter, parameters):
        raise ValueError(f"the adapter does not fit the model: {reason}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(adapter[name])


def save_adapter(model: peft.PeftModel, adapter: Adapter, directory: Path) -> None:
    """Write an adapter in PEFT's own format; the directory is replaced as a whole."""
    temporary = directory.with_name(f".{directory.name}-new")
    shutil.rmtree(temporary, ignore_errors=True)
    write_adapter(model, adapter)
    model.save_pretrained(str(temporary), save_embedding_layers=False)
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def load_adapter(model: peft.PeftModel, directory: Path) -> None:
    """Set a model's adapter from a directory in PEFT's format.

    Raises:
        UserError: the files are missing or don't fit the model.
    """
    file = directory / "adapter_model.safetensors"
    if not file.is_file():
        raise UserError(
            f"no adapter at {directory}: {file.name} is missing. Give a run directory with a finished round."
        )
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise UserError(f"the adapter at {directory} can't be read: {error}. Restore it from a copy.") from error
    expected = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    shapes, wanted = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (state, expected))
    if odd := sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name)):
        there, here = shapes.get(odd[0], "missing"), wanted.get(odd[0], "not in the model")
        raise UserError(f"the adapter at {directory} does not fit the model: {odd[0]} is {there}, and here {here}")
    peft.set_peft_model_state_dict(model, state)


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(parameters of the adapter that are trained, parameters of the frozen base); a frozen A is neither."""
    adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return adapter, sum(p.numel() for name, p in model.named_parameters() if not _is_adapter(name, p))


def _is_adapter(name: str, parameter: nn.Parameter) -> bool:
    return parameter.requires_grad or _ACTIVE in name
