"""The processes that `torchrun` started to hold one model together, and the messages between them.

Process 0 leads: it runs the program, and the others do what it requests. They wait for a request as long as it takes;
within a joint computation, no process waits longer than `_PATIENCE` for another one.
"""

import contextlib
import json
import os
import signal
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_distributed
from torch import Tensor

from fedcollm.errors import UserError
from fedcollm.launched import launched

dist: Any = torch_distributed  # has no complete type annotations

_PATIENCE = timedelta(minutes=30)
_FOREVER = timedelta(days=365)  # until the next request: clients may train for days

#: Counts the processes that failed; the first one says why.
_FAILURES = "fedcollm/failures"

#: The request that ends the other processes.
STOP = "stop"


@dataclass(frozen=True)
class Processes:
    """This process, and those that it works with.

    Attributes:
        rank: index of this process; 0 leads.
        count: number of processes.
        device: where this process computes: its GPU, or the CPU of a machine without one.
    """

    rank: int
    count: int
    device: torch.device
    _waiting: Any = field(repr=False)  # the group for requests, which may be a long time apart
    _store: Any = field(repr=False)

    @property
    def leads(self) -> bool:
        """Whether this process leads."""
        return self.rank == 0

    def request(self, name: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Send a request to all other processes.

        Args:
            name: what to do.
            values: plain values that JSON can hold.
            tensors: tensors by name, each of at least one dimension.
        """
        forms = {k: [str(t.dtype).removeprefix("torch."), list(t.shape)] for k, t in tensors.items()}
        header = torch.frombuffer(bytearray(json.dumps([name, values, forms]).encode()), dtype=torch.uint8)
        dist.broadcast(torch.tensor([len(header)]), 0, group=self._waiting)
        dist.broadcast(header, 0, group=self._waiting)
        for tensor in tensors.values():
            self._broadcast(tensor.detach().to(self.device))

    def requested(self) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
        """Wait for a request. Return its name, its values, and its tensors on this process's device."""
        length = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(length, 0, group=self._waiting)
        header = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(header, 0, group=self._waiting)
        name, values, forms = json.loads(header.numpy().tobytes())
        tensors = {
            k: torch.empty(shape, dtype=getattr(torch, d), device=self.device) for k, (d, shape) in forms.items()
        }
        for tensor in tensors.values():
            self._broadcast(tensor)
        return name, values, tensors

    def _broadcast(self, tensor: Tensor) -> None:
        if tensor.numel():
            dist.broadcast(_bytes(tensor), 0)

    def collect(self, part: Tensor) -> list[Tensor]:
        """Return the parts of all processes, each [rows, columns] of one dtype, to the leader; nothing to others."""
        if not self.leads:
            dist.send(torch.tensor(part.shape, device=self.device), 0)
            if part.numel():
                dist.send(_bytes(part.detach()), 0)
            return []
        parts = [part]
        for rank in range(1, self.count):
            shape = torch.empty(2, dtype=torch.int64, device=self.device)
            dist.recv(shape, rank)
            parts.append(part.new_empty((int(shape[0]), int(shape[1]))))
            if parts[-1].numel():
                dist.recv(_bytes(parts[-1]), rank)
        return parts

    def deal(self, parts: Sequence[Tensor], own: Tensor) -> Tensor:
        """Send every process its part, and return this process's part.

        Args:
            parts: the parts by rank; only the leader has them.
            own: a tensor of the shape and dtype of this process's part.
        """
        if self.leads:
            for rank, part in enumerate(parts[1:], start=1):
                if part.numel():
                    dist.send(_bytes(part), rank)
            return parts[0]
        part = torch.empty_like(own)
        if part.numel():
            dist.recv(_bytes(part), 0)
        return part

    def add(self, values: Tensor) -> Tensor:
        """Return the sum of all processes' values to the leader; what the others get means nothing."""
        dist.reduce(values, 0)
        return values

    def fails_first(self) -> bool:
        """Count this process as failed. Return whether it is the first one, which has to say why."""
        try:
            return self._store.add(_FAILURES, 1) == 1
        except RuntimeError:  # whoever kept the store is gone, and was the first
            return False


def _bytes(tensor: Tensor) -> Tensor:
    """Return a tensor as its bytes, since not every backend carries every dtype."""
    return tensor.contiguous().view(torch.uint8)


_current: list[Processes] = []


def current() -> Processes | None:
    """Return the processes that this one works with, within `together`; None if it is alone.

    Raises:
        UserError: torchrun started several processes, and they don't work together.
    """
    if not _current and launched() > 1:
        raise UserError(
            f"torchrun started {launched()} processes, and each of them would do the same run. Start one process "
            "without torchrun, or `torchrun ... -m fedcollm run`, which shares one run among them."
        )
    return _current[0] if _current else None


@contextlib.contextmanager
def together() -> Generator[Processes, None, None]:
    """Join the processes that torchrun started; in the end, and if one fails, all of them end.

    Raises:
        UserError: there are too few GPUs, or another process was lost.
        SystemExit: another process failed before, and has said why.
    """
    processes = _join()
    _current.append(processes)
    try:
        yield processes
        if processes.leads:
            processes.request(STOP, {}, {})
    except BaseException as error:
        if not processes.fails_first():
            raise SystemExit(1) from None
        if _is_lost(error):
            raise UserError(
                f"process {processes.rank} of {processes.count} has lost another ({str(error).partition('. ')[0]}). "
                "Every finished round is saved: see why the other one ended, and go on with --resume."
            ) from error
        raise
    finally:
        _current.clear()
        dist.destroy_process_group()


def _join() -> Processes:
    has_gpu, local = torch.cuda.is_available(), int(os.environ.get("LOCAL_RANK", "0"))
    if has_gpu and (here := int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) > torch.cuda.device_count():
        if local:
            raise SystemExit(2)
        raise UserError(
            f"torchrun started {here} processes, and this machine has {torch.cuda.device_count()} GPUs. Set "
            f"--nproc-per-node to at most {torch.cuda.device_count()}."
        )
    device = torch.device("cuda", local) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    store, rank, count = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_PATIENCE)
    if rank:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process, and the leader ends the others
    return Processes(rank, count, device, dist.new_group(backend="gloo", timeout=_FOREVER), store)


def _is_lost(error: BaseException) -> bool:
    """Return whether an error says that a message did not come through."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text or isinstance(error, dist.DistError))
