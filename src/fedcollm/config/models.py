"""The `llm` and `slm` sections of the configuration: base models and their adapters."""

from typing import Any, Literal

from pydantic import Field

from fedcollm.config.base import NonNegative, Positive, PositiveFloat, Section, Share


class AdapterConfig(Section):
    """A PEFT adapter, which is all that is trained of a model."""

    kind: str = "lora"
    """lora, dora, ia3, or the PEFT name of any other PEFT method"""
    rank: Positive = 8
    """rank r of low-rank methods such as lora"""
    alpha: PositiveFloat = 16
    """scale α of low-rank methods; the adapter's output is multiplied by α / r"""
    dropout: Share = 0.0
    """dropout probability inside the adapter"""
    targets: Literal["auto", "all-linear"] | list[str] = "auto"
    """names of the modules that get an adapter; auto: every linear layer except the head"""
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    """further arguments of the method's PEFT configuration class, such as {use_rslora: true}"""
    freeze_a: bool = False
    """lora only: keep the random A frozen, train and send only B (FFA-LoRA); averaging is then exact"""


class ModelConfig(Section):
    """A frozen base model and its adapter."""

    source: str = "smollm2-135m"
    """hub id, directory, .gguf file, or the name of a shipped model"""
    layers: Positive | None = None
    """keep only this many layers, evenly spaced, including the first and the last; null: all layers"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the frozen weights; auto: bfloat16 if the hardware multiplies it fast, otherwise float32"""
    attention: Literal["auto", "grouped", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """attention implementation; auto: our own grouped attention on a CPU if possible, else transformers' default"""
    pretrain_epochs: NonNegative = 0
    """epochs of full training on the public set before the adapter is added, for models with random weights"""
    adapter: AdapterConfig = AdapterConfig()
