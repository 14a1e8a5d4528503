"""The form in which the server broadcasts θ, and from which every client has it back.

In a few bits per value, the server sends only how θ differs from θ₀, with which every party's adapter begins. So a
client needs no memory of earlier rounds, and one that joins late or starts again has θ like all others. Clients train
what was sent, θ̂, and the server adds their mean change of θ̂ to its own θ, so that what was rounded off never adds up.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from fedcollm.errors import RefusalError
from fedcollm.federation.aggregation.base import Ask
from fedcollm.federation.quantization import BITS, VALUES, lanes, most_of, quantized, quantized_form, restored
from fedcollm.federation.statistics import asked_for
from fedcollm.federation.upload_format import widened
from fedcollm.messages import (
    Adapter,
    Answer,
    Request,
    TrainRequest,
    adapter_bytes,
    misshapen,
    not_finite,
    payload_digest,
)

#: Name of the tensor that says which θ₀ a difference belongs to; no tensor of an adapter is called so.
START = "quantized start"


@dataclass(frozen=True)
class DownloadFormat:
    """The form in which the server broadcasts θ.

    Attributes:
        dtype: dtype that the values are rounded to; None for θ itself.
        bits: 8, 4 or 3 if only the difference from θ₀ is sent, in so many bits per value; None otherwise.
        start: θ₀; empty if θ itself is sent.
    """

    dtype: torch.dtype | None = None
    bits: int | None = None
    start: Adapter = field(repr=False, default_factory=dict[str, torch.Tensor])

    @property
    def exact(self) -> bool:
        """Whether θ itself is sent."""
        return self.dtype is None and self.bits is None

    def packed(self, theta: Adapter) -> Adapter:
        """Return what is sent of θ; the same bytes whenever a round is tried again."""
        if self.bits is not None:
            return quantized(theta, self.start, self.bits, None) | {START: self._name_of_start()}
        return theta if self.dtype is None else {name: tensor.to(self.dtype) for name, tensor in theta.items()}

    def opened(self, sent: Adapter) -> Adapter:
        """Return θ̂, which clients train, from what was sent."""
        if self.bits is not None:
            return restored(sent, self.start, self.bits)
        return sent if self.dtype is None else widened(sent, self.start)

    def received(self, request: TrainRequest) -> TrainRequest:
        """Return a request with θ̂, given one as it arrived.

        Statistics and the final adapter, which a client keeps, always travel as they are.

        Raises:
            RefusalError: the request's adapter has another form, or belongs to another θ₀.
        """
        if self.exact or request.keep or asked_for(request):
            return request
        reason = misshapen(request.adapter, self.form(self.start))
        if reason is None and (name := not_finite(request.adapter)):
            reason = f"tensor {name} is not finite"
        if reason:
            raise RefusalError(f"the global adapter does not arrive as federation.download says: {reason}")
        if self.bits is not None and not torch.equal(request.adapter[START], self._name_of_start()):
            raise RefusalError(
                "the global adapter arrives as the difference from another adapter than this client begins with. Give "
                "every party the same base model, seed and versions of torch and peft, or set federation.download: "
                "bfloat16."
            )
        return replace(request, adapter=self.opened(request.adapter))

    def form(self, theta: Adapter) -> Adapter:
        """Return tensors of the shapes and dtypes of what is sent; their values mean nothing."""
        if self.bits is not None:
            return quantized_form(theta, self.bits) | {START: torch.empty(32, dtype=torch.uint8, device="meta")}
        if self.dtype is None:
            return theta
        return {name: torch.empty(t.shape, dtype=self.dtype, device="meta") for name, t in theta.items()}

    def _name_of_start(self) -> torch.Tensor:
        """Return the SHA-256 of θ₀, [32] uint8."""
        return torch.tensor(list(bytes.fromhex(payload_digest(self.start, {}))), dtype=torch.uint8)


#: θ itself.
EXACT = DownloadFormat()


def download_format(name: str, start: Adapter) -> DownloadFormat:
    """Return the format of a name.

    Args:
        name: a value of `federation.download`.
        start: θ₀.
    """
    if name == "float32":
        return EXACT
    bits = BITS.get(name)
    return DownloadFormat(None if bits else getattr(torch, name), bits, start)


def most_answered(sent: Adapter) -> int:
    """Return the most bytes that a client's adapter can take in its answer, 4 per value, given what it was sent."""
    if VALUES in sent:
        return 4 * lanes(2 * most_of(min(BITS.values())) + 1) * sent[VALUES].numel()
    return max(adapter_bytes(sent), 4 * sum(tensor.numel() for tensor in sent.values()))


def sending(ask: Ask, sent: Adapter) -> Ask:
    """Return a function that asks as `ask` does, and puts what is sent of θ into the requests to train it."""

    def asking(requests: Mapping[str, Request]) -> Iterator[Answer]:
        changed = {id(one): replace(one, adapter=sent) for one in requests.values() if isinstance(one, TrainRequest)}
        yield from ask({client: changed.get(id(one), one) for client, one in requests.items()})

    return asking


def applied(theta: Adapter, seen: Adapter, mean: Adapter) -> Adapter:
    """Return the mean of the clients' adapters as it would be had they trained θ, given θ̂, which they trained."""
    if seen is theta:
        return mean
    return {
        name: (tensor.double() + (mean[name].double() - seen[name].double())).to(tensor.dtype)
        for name, tensor in theta.items()
    }
