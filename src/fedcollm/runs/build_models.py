"""Build the base networks of a run, with their adapters, from its configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors.torch
import torch
from torch import nn

from fedcollm.config import AdapterConfig, ClientConfig, ModelConfig, RunConfig
from fedcollm.data.modality_builders import BaseModels
from fedcollm.errors import SECTION, UserError, in_section
from fedcollm.modalities.audio.models import AUDIO_MODELS
from fedcollm.modalities.base import Modality
from fedcollm.modalities.vision.detectors import DETECTORS
from fedcollm.modalities.vision.models import VISION_MODELS
from fedcollm.models.adapters import add_adapter, resolve_device, resolve_dtype
from fedcollm.models.cache import is_entry
from fedcollm.models.checkpointing import recompute_layers
from fedcollm.models.device_map import check_placed
from fedcollm.models.fused.patch import fuse
from fedcollm.models.made import WEIGHTS, network_name, write_network_name
from fedcollm.models.peft_config import with_layers
from fedcollm.models.processes import current
from fedcollm.models.quantized import quantize
from fedcollm.models.warm_start import warm_start
from fedcollm.progress import say
from fedcollm.runs.followers import spread_over, to_spread
from fedcollm.runs.identity import base_digests
from fedcollm.runs.portable import copy_input_files
from fedcollm.seeding import derive_seed
from fedcollm.storage import make_directory
from fedcollm.training.fine_tuning import fit

if TYPE_CHECKING:
    import peft

#: Networks that ship with fedcollm without weights, which follow from the run's seed.
NETWORKS = (*AUDIO_MODELS, *VISION_MODELS, *DETECTORS)


def set_backends(config: RunConfig) -> None:
    """Set torch's global switches for a run; see `set_precision`."""
    set_precision((config.slm, config.llm), resolve_device(config.device))


def set_precision(models: Sequence[ModelConfig], device: torch.device) -> None:
    """Set torch's global switches for some models on a device.

    If a base is in bfloat16, float32 matrix products may be computed in bfloat16 too: adapters are then 2 to 4 times
    faster. cuDNN's attention is off, because its backward pass with a mask gives NaN for some lengths (pytorch issue
    196678); flash and memory-efficient attention take its place.
    """
    dtypes = {resolve_dtype(model.dtype, device) for model in models}
    set_switches("medium" if torch.bfloat16 in dtypes else "highest")


def set_switches(precision: str) -> None:
    """Set torch's global switches, given the precision of float32 matrix products; see `set_precision`."""
    torch.set_float32_matmul_precision(precision)
    cast(Any, torch.backends.cuda).enable_cudnn_sdp(False)


def build_slm(config: RunConfig, modality: Modality, public: Sequence[Any], base: Path) -> "peft.PeftModel":
    """Return the SLM; a module without parameters if all that the run does is a control that needs no model.

    Args:
        config: the run's configuration.
        modality: the modality as the SLM needs it.
        public: D_a, as in `build_model`.
        base: directory for base models that the run pretrains itself.

    Raises:
        UserError: as in `build_model`.
    """
    if config.control is not None and not config.control.needs_model:
        return cast("peft.PeftModel", nn.Module())
    say(f"loading {config.slm.source}")
    return build_model(config, "slm", modality, public, base)


def build_model(
    config: RunConfig, role: str, modality: Modality, public: Sequence[Any], base: Path
) -> "peft.PeftModel":
    """Return a role's frozen base with its adapter, on its device, in evaluation mode.

    Args:
        config: the run's configuration.
        role: `slm` or `llm`.
        modality: the modality as that role needs it.
        public: D_a; the base is pretrained on its labelled part if `pretrain_epochs` asks for it.
        base: directory for base models that the run pretrains itself.

    Raises:
        UserError: the base, the adapter, what it starts from and the data for pretraining do not fit together.
    """
    section = config.slm if role == "slm" else config.llm
    device, pretrained = resolve_device(config.device), base / role
    seed = base_seed(config.seed, role)
    if section.pretrain_epochs and not pretrained.is_dir():
        network = _load(modality, section, role, device, seed)
        say(f"pretraining {role} ({section.source}) on the public part: {section.pretrain_epochs} epochs")
        _pretrain(config, role, modality, network, public)
        save_base(network, pretrained, section.source)
    processes = current() if role == "llm" else None
    if processes is not None:
        section, device = to_spread(section, modality, device, processes), torch.device("cpu")
    network = load_base(section, role, modality, pretrained, device, seed)  # as a resumed run will
    frozen, adapter_seed = set(network.parameters()), derive_seed(config.seed, "adapter", role)
    name = base_name(section, network) if not section.pretrain_epochs else f"{config.name}/base/{role}"
    tuned = adapted(network, section.adapter, modality, adapter_seed, name)
    if section.adapter.start is not None:
        with in_section(role):
            warm_start(tuned, section.adapter, base / f"{role}-start")
    if processes is not None:
        digests = dict(base_digests(role, tuned))
        spread = spread_over(processes, tuned, frozen, section, adapter_seed)
        spread.digests = digests
        vars(tuned)["spread"] = spread
    elif not hasattr(network, "hf_device_map"):  # accelerate's hooks, which move tensors, are in the forward passes
        fuse(tuned)
    if section.gradient_checkpointing:
        with in_section(role):
            recompute_layers(tuned)
    return tuned


def base_seed(seed: int, role: str) -> int:
    """Return the seed of the random weights of a role's base, given that of the run."""
    return derive_seed(seed, "base", role)


def load_base(
    section: ModelConfig, role: str, modality: Modality, saved: Path, device: torch.device, seed: int
) -> nn.Module:
    """Return a role's base network, without an adapter.

    Args:
        section: the section of the model.
        role: `slm` or `llm`.
        modality: the modality as that role needs it.
        saved: directory of the base, if it was saved; otherwise it comes from the section's source.
        device: where it will run.
        seed: seed of the weights of a base that is not pretrained.

    Raises:
        UserError: the source can't be loaded, or what was saved does not fit it.
    """
    if (saved / "config.json").is_file():
        section = section.model_copy(update={"source": str(saved), "layers": None})
    network = _load(modality, section, role, device, seed)
    if (saved / WEIGHTS).is_file():
        cast(Any, safetensors.torch).load_model(network, saved / WEIGHTS)
    if section.quantization != "none":
        with in_section(role):
            if hasattr(network, "hf_device_map"):  # its hooks sit on the layers that would be replaced
                raise UserError(
                    f"{SECTION}quantization can't be combined with device_map. Set quantization: none, or device_map: "
                    "null."
                )
            quantize(network, section.quantization)
    return network


def base_name(section: ModelConfig, network: nn.Module) -> str:
    """Return the name that PEFT's files give a base: its source, or the entry of the cache if it was cut or healed.

    A place within the cache means nothing on another machine, and is left out.
    """
    place = Path(getattr(network, "name_or_path", "") or section.source)
    return place.name if (section.cut or section.source == str(place)) and is_entry(place) else section.source


def _load(modality: Modality, section: ModelConfig, role: str, device: torch.device, seed: int) -> nn.Module:
    with in_section(role):
        network = modality.load_model(section, role, device, seed)
        if section.device_map is None:
            return network.to(device)
        check_placed(network, section, device)
        return network


def adapted(
    network: nn.Module, section: AdapterConfig, known: BaseModels, seed: int = 0, base_name: str | None = None
) -> "peft.PeftModel":
    """Freeze a base network, and give it a trainable adapter where its modality says.

    Args:
        network: the base network, from `load_model` or `outline`.
        section: the adapter's configuration.
        known: the modality's knowledge of base models.
        seed: seed of the adapter's initial values.
        base_name: the path or hub id of the base.

    Raises:
        UserError: the adapter does not fit the network.
    """
    return add_adapter(
        network,
        with_layers(section, known.adapted_layers(network)),
        seed=seed,
        causal_lm=known.causal_lm,
        base_name=base_name,
        whole=known.trained_modules(network),
    )


def save_base(network: nn.Module, directory: Path, source: str) -> None:
    """Save a pretrained base as a directory that can be the source of another run.

    Args:
        network: the base, in the format of transformers if it has one; otherwise its weights alone are saved.
        directory: the directory to make.
        source: what it was made from. Its files that read a model's input go along.
    """
    made_from = str(getattr(network, "name_or_path", "") or source)
    if hasattr(network, "save_pretrained"):
        cast(Any, network).save_pretrained(directory)
    else:
        make_directory(directory)
        cast(Any, safetensors.torch).save_model(network, str(directory / WEIGHTS))
    if (name := network_name(source)) in NETWORKS:
        write_network_name(directory, name)
    copy_input_files(made_from, directory)


def _pretrain(config: RunConfig, role: str, modality: Modality, network: nn.Module, public: Sequence[Any]) -> None:
    """Train all weights of a base on the labelled public examples, as a stand-in for pretraining.

    Batches, learning rate, its schedule and clipping are those of the server; all epochs are one round.
    """
    section = config.slm if role == "slm" else config.llm
    labelled = [example for example in public if example.label is not None]
    if not labelled:
        raise UserError(
            f"{role}.pretrain_epochs: {section.pretrain_epochs} needs labelled public examples; set task.public_size."
        )
    settings = ClientConfig(
        epochs=section.pretrain_epochs,
        batch_size=config.server.batch_size,
        learning_rate=config.server.learning_rate,
        schedule=config.server.schedule,
        warmup_ratio=config.server.warmup_ratio,
        max_grad_norm=config.server.max_grad_norm,
    )
    # "warm_up" is the former name of `pretrain_epochs`. It is part of the seed: another word would change every bit.
    seed = derive_seed(config.seed, "warm_up", role)
    fit(modality, network, labelled, settings, seed, f"pretraining {role}")
