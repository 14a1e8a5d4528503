"""The `llm` and `slm` sections of the configuration: base models and their adapters."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from fedcollm.config.adapter_options import LARGEST_NUMBER, check_names, check_options
from fedcollm.config.base import NonNegative, Positive, PositiveFloat, Section, Share, one_of
from fedcollm.config.choices import LAYER_CHOICES, SCHEDULES, comment
from fedcollm.config.training import TrainingConfig
from fedcollm.config.yaml_text import as_switch

#: Bounds on sizes that another party may have written: more than any model has, and less than a memory.
LARGEST_RANK, _MOST_LAYERS = 2**16, 10_000


class AdapterConfig(Section):
    """A PEFT adapter, which is all that is trained of a model."""

    kind: str = "lora"
    """lora, dora, ia3, or the PEFT name of any other PEFT method"""
    rank: Annotated[int, Field(ge=1, le=LARGEST_RANK)] = 8
    """rank r of low-rank methods such as lora"""
    alpha: Annotated[float, Field(gt=0, le=LARGEST_NUMBER)] = 16
    """scale α of low-rank methods; the adapter's output is multiplied by α / r"""
    dropout: Share = 0.0
    """dropout probability inside the adapter"""
    targets: Literal["auto", "all-linear"] | list[str] = "auto"
    """names of the modules that get an adapter; auto: every linear layer except the head"""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """further arguments of the method's PEFT configuration class, such as {use_rslora: true}"""
    freeze_a: bool = False
    """lora only: keep the random A frozen, train and send only B (FFA-LoRA); averaging is then exact"""
    core: bool = False
    """lora only: train and send only r x r values per layer (LoRA-XS, Fed-SB); take rank 16 to 32, alpha as for lora"""
    start: Path | None = None
    """directory of a trained PEFT adapter to start from, such as adapters/slm of a run directory; null: a fresh one"""

    @model_validator(mode="after")
    def _one_part(self) -> "AdapterConfig":
        if self.core and (self.freeze_a or self.start is not None):
            key = "freeze_a" if self.freeze_a else "start"
            raise ValueError(f"core trains what lies between A and B, which does not go with {key}. Remove one of them")
        return self

    @property
    def is_partial(self) -> bool:
        """Whether only a part of the adapter is trained, so that A and B are not both sent."""
        return self.freeze_a or self.core

    @field_validator("options")
    @classmethod
    def _with_switches(cls, options: dict[str, Any]) -> dict[str, Any]:
        check_options(options)
        return {name: as_switch(value) for name, value in options.items()}  # PEFT takes any text for true

    @field_validator("targets")
    @classmethod
    def _are_names(cls, targets: str | list[str]) -> str | list[str]:
        check_names([] if isinstance(targets, str) else targets)
        return targets


def _kind(layers: object) -> str:
    return "indices" if isinstance(layers, (list, tuple)) else "number"


#: A number of layers, or their indices. The discriminator makes an invalid value one error instead of two.
_Layers = Annotated[
    Annotated[int, Field(ge=1, le=_MOST_LAYERS), Tag("number")]
    | Annotated[
        list[Annotated[int, Field(ge=0, lt=_MOST_LAYERS)]], Field(min_length=1, max_length=_MOST_LAYERS), Tag("indices")
    ],
    Discriminator(_kind),
]


class HealingConfig(TrainingConfig):
    """Healing of a cut base: all its weights except embedding and head learn from the whole model on public text."""

    epochs: NonNegative = 1
    """passes over the pieces of text; 0: only cut, do not train"""
    text: str = "icd10"
    """public text: icd10 (descriptions that the task never uses), a file (.txt, .jsonl, .csv, .parquet), or a hub id"""
    size: Positive = 1920
    """pieces of text to train on"""
    words: Annotated[int, Field(ge=2)] = 32
    """longest piece in words; longer texts are cut into several pieces"""
    objective: Literal["distillation", "next_token"] = "distillation"
    """distillation: match the whole model's next-token distributions; next_token: predict the text, for a control"""
    seed: NonNegative = 0
    """seed of the choice and order of pieces; the same for all runs, so that they share one healed base"""
    batch_size: Positive = 12
    """pieces per forward pass"""
    learning_rate: PositiveFloat = 8.0e-4
    """peak learning rate of AdamW"""
    schedule: Annotated[str, one_of(SCHEDULES)] = "linear"
    """constant, linear or cosine, over the whole healing"""
    warmup_ratio: Share = 0.2
    """fraction of the steps over which the learning rate rises linearly from 0 to its peak"""
    max_grad_norm: PositiveFloat | None = 1.0
    """gradient clipping: scale a step's gradient down to this L2 norm if it is larger; null: no clipping"""


class ModelConfig(Section):
    """A frozen base model and its adapter."""

    source: str = "smollm2-135m"
    """hub id, directory, .gguf file, or the name of a shipped model"""
    layers: _Layers | None = None
    """keep only this many layers, or those with these indices (0 is the first); null: all layers"""
    layer_choice: Annotated[str, one_of(LAYER_CHOICES), Field(description=comment("layer_choice"))] = "even"
    mlp_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """share of each MLP's neurons to keep, those with the largest mean output on the text of heal; 1: all"""
    heal: HealingConfig | None = None
    """healing of the cut base on public text, done once and cached; null: none, {}: as below"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the frozen weights; auto: bfloat16 if the hardware multiplies it fast, otherwise float32"""
    quantization: Literal["none", "int8"] = "none"
    """int8: pack the frozen linear layers in 8 bits, for less memory and more time; it needs fedcollm[quantized]"""
    attention: Literal["auto", "grouped", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """attention implementation; auto: our own grouped attention on a CPU if possible, else transformers' default"""
    gradient_checkpointing: bool = False
    """recompute each layer in the backward pass instead of keeping its activations: less memory, a third more time"""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """text models: spread the layers of the base over the GPUs of this machine, as accelerate does; null: one device"""
    pretrain_epochs: NonNegative = 0
    """epochs of full training on the public set before the adapter is added, for models with random weights"""
    adapter: AdapterConfig = AdapterConfig()

    @model_validator(mode="after")
    def _cores_need_whole_weights(self) -> "ModelConfig":
        if self.quantization != "none" and self.adapter.core:
            raise ValueError(
                f"quantization {self.quantization} hides the weights that adapter.core takes its directions from. Set "
                "quantization: none, or adapter.core: false"
            )
        return self

    @model_validator(mode="after")
    def _measurements_need_text(self) -> "ModelConfig":
        measured = [f"layer_choice {self.layer_choice}"] * (self.layer_choice != "even")
        measured += [f"mlp_share {self.mlp_share:g}"] * (self.mlp_share < 1)
        if measured and self.heal is None:
            raise ValueError(f"{measured[0]} is measured on text. Set heal, for example to {{text: icd10}}")
        if self.layer_choice != "even" and not isinstance(self.layers, int):
            raise ValueError(f"layer_choice {self.layer_choice} needs layers to be the number of layers to keep")
        return self

    @property
    def cut(self) -> str:
        """What a run keeps of the base, in words; empty if all of it."""
        kept = (
            []
            if self.layers is None
            else [f"{self.layers if isinstance(self.layers, int) else len(self.layers)} layers"]
        )
        kept += [f"{100 * self.mlp_share:g}% of each MLP"] * (self.mlp_share < 1)
        return " and ".join(kept)
