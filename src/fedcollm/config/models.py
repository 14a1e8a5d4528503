"""Sections of a run's configuration: base models and their adapters."""

from typing import Annotated, Any, Literal

from pydantic import Field

from fedcollm.config.base import NonNegative, Positive, PositiveFloat, Section, Share


class AdapterConfig(Section):
    """A PEFT adapter."""

    kind: str = "lora"
    """lora, dora, ia3, or any PEFT method by its PEFT name"""
    rank: Positive = 8
    """rank r of low-rank methods"""
    alpha: PositiveFloat = 16
    """scale α of low-rank methods"""
    dropout: Share = 0.0
    """dropout inside the adapter"""
    targets: Literal["auto", "all-linear"] | list[str] = "auto"
    """names of the modules that get an adapter; auto: every linear layer except the head"""
    options: Annotated[dict[str, Any], Field(default_factory=dict)]
    """further fields of the method's PEFT configuration"""
    freeze_a: bool = False
    """kind lora: keep A at its random start, and train and send only B (FFA-LoRA): a mean of adapters is then exact"""


class ModelConfig(Section):
    """A frozen base model and its adapter."""

    source: str = "smollm2-135m"
    """hub id, directory, .gguf file, or the name of a shipped model"""
    layers: Positive | None = None
    """keep this many evenly spread layers, first and last included; null: all"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the frozen base; auto: bfloat16 where the hardware multiplies it fast, else float32"""
    attention: Literal["auto", "grouped", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """attention implementation; auto: grouped (ours) on a CPU where the model qualifies, else transformers' choice"""
    pretrain_epochs: NonNegative = 0
    """epochs of full training on the public part before the adapter is added (models without pretrained weights)"""
    adapter: AdapterConfig = AdapterConfig()
