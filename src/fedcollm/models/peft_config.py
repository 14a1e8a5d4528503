"""What PEFT is told of an adapter: its method, its sizes and its target modules."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from fedcollm.config import AdapterConfig
from fedcollm.errors import UserError

#: Methods of PEFT that can't be trained here, and why.
_UNSUITED: Mapping[str, str] = {
    "adaption_prompt": "puts learned tokens into the attention of every layer, which changes what fedcollm counts",
    "poly": "needs the number of a task with every example",
    "shadow": "replaces what passes between layers by objects that the models' own layers don't take",
    "trainable_tokens": "trains rows of the embedding, which never leave a machine",
    "xlora": "mixes adapters that are trained already",
}


def peft_config(section: AdapterConfig) -> Any:
    """Return the PEFT configuration of a method: the common keys of our section that it has, and `options`.

    Raises:
        UserError: the method or an option does not exist, or does not fit.
    """
    kind, options, factory = section.kind, section.options, _factory(section.kind)
    fields = set[str](factory.__dataclass_fields__)
    values = _common_fields(section, fields)
    if kind.lower() == "dora":
        values["use_dora"] = True
    if own := set(options) & values.keys():
        raise UserError(
            f"adapter.options: {', '.join(sorted(own))} is set by a key of its own: kind, rank, alpha, dropout or "
            "targets. Use that key."
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


def with_layers(section: AdapterConfig, layers: Sequence[str] | None) -> AdapterConfig:
    """Return a section in which these layers stand for `targets: auto` and `all-linear`.

    It is returned as it is if `layers` is None, if it names targets of its own, or if its method has no rank.
    """
    has_rank = "r" in _factory(section.kind).__dataclass_fields__
    if layers is None or not isinstance(section.targets, str) or not has_rank:
        return section
    return section.model_copy(update={"targets": list(layers)})


def train_whole(config: Any, section: AdapterConfig, whole: Sequence[str]) -> None:
    """Set PEFT's `modules_to_save`.

    Raises:
        UserError: the method has none, or a module is a target of the adapter too.
    """
    if not hasattr(config, "modules_to_save"):
        raise UserError(
            f"adapter.kind {section.kind} can't train {', '.join(whole)} beside the adapter, a fresh output layer. "
            "Set adapter.kind: lora."
        )
    targets = [] if isinstance(section.targets, str) else section.targets
    if twice := [name for name in whole if any(f".{name}".endswith(f".{target}") for target in targets)]:
        raise UserError(
            f"adapter.targets: {twice[0]} is trained as a whole, so it can't have an adapter too. Remove it from "
            "adapter.targets."
        )
    config.modules_to_save = [*(config.modules_to_save or ()), *whole]


def check_partial(section: AdapterConfig) -> None:
    """Raise UserError if `freeze_a` or `core` is set for a method that is not plain LoRA."""
    if not section.is_partial:
        return
    key = "core" if section.core else "freeze_a"
    if section.kind.lower() != "lora":
        what = f"{section.kind} is not plain LoRA"
    elif section.options.get("use_dora"):
        what = f"{section.kind} with use_dora trains more than B"
    else:
        return
    raise UserError(f"adapter.{key}: {what}; set adapter.kind: lora without use_dora, or {key}: false.")


def _factory(kind: str) -> Any:
    """Return PEFT's configuration class of a method; raise UserError if there is none, or it learns a prompt."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    method = "LORA" if kind.lower() == "dora" else kind.upper()
    factories: dict[str, Any] = cast(Any, PEFT_TYPE_TO_CONFIG_MAPPING)
    if method not in factories:
        known = ", ".join(sorted(str(cast(Any, name).value).lower() for name in factories))
        raise UserError(f"adapter.kind: unknown method {kind!r}. Known: dora, {known}")
    if reason := _UNSUITED.get(method.lower()):
        raise UserError(f"adapter.kind: {kind} {reason}. Choose another method, such as lora, dora or ia3.")
    if issubclass(factories[method], cast(Any, peft).PromptLearningConfig):
        raise UserError(
            f"adapter.kind: {kind} puts learned tokens before every prompt, which changes the positions that fedcollm "
            "counts. Choose a method that changes layers, such as lora, dora or ia3."
        )
    return factories[method]


def _common_fields(section: AdapterConfig, fields: set[str]) -> dict[str, Any]:
    """Return the keys of our section under the names of PEFT, except those that a method does not have."""
    common: dict[str, Any] = {
        "r": section.rank,
        "rank": section.rank,
        "lora_alpha": section.alpha,
        "alpha": section.alpha,
        "lora_dropout": section.dropout,
    }
    targets = section.targets
    if targets != "auto":
        common["target_modules"] = targets if isinstance(targets, str) else list(targets)
    elif "r" in fields:
        common["target_modules"] = "all-linear"
    return {name: value for name, value in common.items() if name in fields}
