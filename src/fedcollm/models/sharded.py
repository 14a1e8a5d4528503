"""A model whose frozen base is spread over several processes, each of which holds a part of every layer.

FSDP (`torch.distributed.fsdp.fully_shard`) gathers a layer's weights for as long as they are needed. The adapter is
whole in every process. The leader runs the program, and calls the model by `Spread.rows`. Each process computes some of
the batch's sequences. The leader gets all rows and, in the backward pass, the sum of the adapter's gradients, so that
losses, optimizers and everything else are those of a single process.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fedcollm.errors import UserError
from fedcollm.models.processes import Processes
from fedcollm.seeding import derive_seed

if TYPE_CHECKING:
    from peft import PeftModel

#: Computes [rows, columns] of sequences, the rows of one sequence after those of the one before. Its arguments are the
#: network, tensors by name, each [B, ...], and plain values.
Operation = Callable[[nn.Module, dict[str, Tensor], Mapping[str, Any]], Tensor]

_BACKWARD = "backward"


def shard(model: "PeftModel", base: set[nn.Parameter], processes: Processes) -> list[int]:
    """Keep only this process's part of a frozen base, in place. All processes do so together.

    Args:
        model: a PEFT model on the CPU, the same one in every process.
        base: the parameters of its base.
        processes: those that share the base.

    Returns:
        The bytes of the base that each process holds from now on, for the leader.

    Raises:
        UserError: the adapter is one that changes the model's input.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if cast(Any, model).active_peft_config.is_prompt_learning:
        raise UserError("llm.adapter.kind: prompts that are learned can't be used with torchrun. Set it to lora.")
    adapter = set(adapter_of(model, base))
    for parameter in adapter:
        parameter.data = parameter.data.to(processes.device)
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    network = cast(nn.Module, cast(Any, model).get_base_model())
    for module in (*_layers(network), network):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=adapter)
    held = sum(_bytes_here(parameter) for parameter in model.parameters() if parameter not in adapter)
    return [int(one) for one in processes.collect(torch.tensor([[held]], device=processes.device))]


def _layers(network: nn.Module) -> list[nn.Module]:
    """Return the layers of a network: the members of its lists of modules that are in no other list."""
    found: dict[str, nn.Module] = {}
    for name, module in cast(Any, network).named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return [layer for stack in found.values() for layer in stack.children()]


def adapter_of(model: nn.Module, base: set[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters of a model that are not in its base: those of the adapter, and a frozen part of it too."""
    return [parameter for parameter in model.parameters() if parameter not in base]


def base_bytes(model: nn.Module) -> dict[str, int]:
    """Return the bytes of a model's frozen weights by the device, or by the process, that holds them."""
    if (spread := getattr(model, "spread", None)) is not None:
        return {f"process {rank}": held for rank, held in enumerate(spread.held)}
    found: dict[str, int] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            found[str(parameter.device)] = found.get(str(parameter.device), 0) + _bytes_here(parameter)
    return found


def _bytes_here(parameter: Tensor) -> int:
    local: Tensor = cast(Any, parameter).to_local() if hasattr(parameter, "to_local") else parameter
    return local.numel() * local.element_size()


class Spread:
    """A sharded model, as every process that holds a part of it sees it.

    Args:
        model: the model, after `shard`.
        processes: those that hold it.
        operations: what can be computed, by name; the same in every process.
        held: the bytes of the base that each process holds.

    Attributes:
        held: see above.
        digests: what `runs.identity` says of the whole base.
    """

    def __init__(
        self, model: "PeftModel", processes: Processes, operations: Mapping[str, Operation], held: Sequence[int] = ()
    ):
        self.held: list[int] = list(held)
        self.digests: dict[str, str] = {}
        self._processes, self._operations = processes, operations
        self._network = cast(nn.Module, cast(Any, model).get_base_model())
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._open: tuple[Tensor, int] | None = None  # rows of the last forward pass, and how many of them count
        self._passes, self._seed = 0, 0  # forward passes so far, and those since torch was seeded

    def rows(self, name: str, tensors: Mapping[str, Tensor], counts: Sequence[int]) -> Tensor:
        """Return all rows, [P, columns], through which gradients of the adapter flow. Only the leader calls this.

        A backward pass must come before the next forward pass, or never.

        Args:
            name: the operation.
            tensors: tensors by name, each [B, ...].
            counts: the number of rows of each sequence.
        """
        if not torch.is_grad_enabled():
            return torch.cat(self.parts(name, tensors, {}, counts))
        return cast(Any, _Rows).apply(self, name, tensors, counts, *self._trained)

    def parts(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any],
        counts: Sequence[int],
        grad: bool = False,
    ) -> list[Tensor]:
        """Return the rows of each process, without gradients. Only the leader calls this.

        Args:
            name: the operation.
            tensors: tensors by name, each [B, ...].
            values: plain values for the operation.
            counts: the number of rows of each sequence.
            grad: whether a backward pass may follow.
        """
        seed = torch.initial_seed()
        self._passes, self._seed = (self._passes + 1 if seed == self._seed else 0), seed
        pass_seed = derive_seed(seed, "forward pass", self._passes)
        values = {**values, "counts": list(counts), "grad": grad, "training": self._network.training, "seed": pass_seed}
        adapter = torch.cat([parameter.detach().float().flatten() for parameter in self._trained])
        tensors = {key: tensor.to(self._processes.device) for key, tensor in tensors.items()}
        self._processes.request(name, values, {"adapter": adapter, **tensors})
        return self._processes.collect(self._compute(name, tensors, values))

    def answer(self, name: str, values: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        """Do this process's part of what the leader requests."""
        if name == _BACKWARD:
            self._gradients(())
            return
        with torch.no_grad():
            for parameter, new in zip(self._trained, self._per_parameter(tensors.pop("adapter")), strict=True):
                parameter.copy_(new)
        self._network.train(values["training"])
        torch.manual_seed(derive_seed(values["seed"], self._processes.rank))  # pyright: ignore[reportUnknownMemberType]
        self._processes.collect(self._compute(name, tensors, values))

    def _compute(self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Tensor:
        """Return the rows of this process's sequences.

        Every process computes the same number of sequences, because each forward pass gathers weights from all. Where
        there are too few, the last sequence stands in, and its rows are dropped.
        """
        counts: list[int] = values["counts"]
        size = math.ceil(len(counts) / self._processes.count)
        mine = range(self._processes.rank * size, (self._processes.rank + 1) * size)
        index = torch.tensor([min(i, len(counts) - 1) for i in mine], device=self._processes.device)
        own = {key: tensor[index] for key, tensor in tensors.items()}
        with torch.inference_mode(False), torch.set_grad_enabled(values["grad"]):  # FSDP keeps its buffers
            rows = self._operations[name](self._network, own, values)
        kept = sum(counts[i] for i in mine if i < len(counts))
        self._open = (rows, kept) if values["grad"] else None
        return rows.detach()[:kept]

    def backward(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient of each trained parameter, given those of each process's rows. Only for the leader."""
        self._processes.request(_BACKWARD, {}, {})
        return self._gradients(parts)

    def _gradients(self, parts: Sequence[Tensor]) -> list[Tensor]:
        assert self._open is not None
        (rows, kept), self._open = self._open, None
        gradient = torch.zeros_like(rows)
        gradient[:kept] = self._processes.deal(parts, gradient[:kept])
        found = torch.autograd.grad(rows, self._trained, gradient, allow_unused=True, materialize_grads=True)
        flat = torch.cat([one.float().flatten() for one in found])
        sums = self._per_parameter(self._processes.add(flat))
        return [one.to(parameter.dtype) for one, parameter in zip(sums, self._trained, strict=True)]

    def _per_parameter(self, flat: Tensor) -> list[Tensor]:
        """Return the values of each trained parameter, in its shape, given those of all in one row."""
        parts = flat.split_with_sizes([parameter.numel() for parameter in self._trained])
        return [part.view_as(parameter) for part, parameter in zip(parts, self._trained, strict=True)]


class _Rows(torch.autograd.Function):
    """The rows of all processes, with the gradients of the adapter."""

    @staticmethod
    def forward(
        ctx: Any, spread: Spread, name: str, tensors: Mapping[str, Tensor], counts: Sequence[int], *trained: Tensor
    ) -> Tensor:
        parts = spread.parts(name, tensors, {}, counts, grad=True)
        ctx.spread, ctx.sizes = spread, [len(part) for part in parts]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        gradients = ctx.spread.backward(grad_outputs[0].split(ctx.sizes))
        return None, None, None, None, *gradients
