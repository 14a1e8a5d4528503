"""How each plain update compares with the others of its round: its norm, its direction, its numbers. None is held.

The direction of a change is kept as a sketch of `SIZE` values, from which the cosine with the other clients' mean
direction is known up to about 1 / √SIZE (AMS sketch, Alon et al. 1999: sums of values with random signs keep inner
products).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from fedcollm.federation.upload_format import WHOLE, UploadFormat
from fedcollm.messages import Adapter, ClientUpdate, norm

#: Number of values in a sketch.
SIZE = 4096


@dataclass
class Observer:
    """Looks at the valid updates of a round as they pass.

    Attributes:
        theta: θ, as it was broadcast.
        uploads: the upload format of each client, by id.
    """

    theta: Adapter = field(repr=False)
    uploads: Mapping[str, UploadFormat] = field(default_factory=dict[str, UploadFormat])
    _numbers: dict[str, dict[str, float]] = field(init=False, default_factory=dict[str, dict[str, float]])
    _directions: dict[str, Tensor] = field(init=False, default_factory=dict[str, Tensor], repr=False)

    def watch(self, updates: Iterable[ClientUpdate]) -> Iterator[ClientUpdate]:
        """Yield the updates as they are, and note the numbers of each."""
        for update in updates:
            start = self.uploads.get(update.client, WHOLE).part(self.theta)
            change = {name: tensor.float() - start[name].float() for name, tensor in update.adapter.items()}
            numbers = (
                {"norm": norm(torch.stack([torch.tensor(norm(one)) for one in change.values()]))} if change else {}
            )
            numbers |= {} if update.loss is None else {"loss": update.loss}
            numbers |= {} if update.score is None else {"score": update.score.value}
            self._numbers[update.client] = numbers
            if numbers.get("norm") and all(one.shape == self.theta[name].shape for name, one in change.items()):
                self._directions[update.client] = functional.normalize(sketch(change), dim=0)
            yield update

    def seen(self) -> dict[str, dict[str, float]]:
        """Return, by client id: the L2 `norm` of its change, its `loss` and `score` if it sent them, and `cosine`.

        The last one is the cosine between its change and the mean direction of the other clients' changes. It is
        missing if its change or all others are zero, and if it has another rank than θ.
        """
        total = sum(self._directions.values(), torch.zeros(SIZE))
        for client, own in self._directions.items():
            others = total - own
            if len(self._directions) > 1 and norm(others) > 0:
                self._numbers[client]["cosine"] = float(functional.cosine_similarity(own, others, dim=0))
        return self._numbers


def sketch(change: Adapter) -> Tensor:
    """Return [SIZE] float32: sums of all values of a change, each with a fixed random sign.

    >>> sketch({"w": torch.tensor([3.0, -4.0])}).abs()[:3].tolist()
    [3.0, 4.0, 0.0]
    """
    generator, total = torch.Generator().manual_seed(0), torch.zeros(SIZE)
    for name in sorted(change):
        values = change[name].detach().flatten().cpu()
        signs = torch.randint(0, 2, values.shape, generator=generator, dtype=torch.int8)
        padded = functional.pad(values * (1 - 2 * signs), (0, -len(values) % SIZE))
        total += padded.reshape(-1, SIZE).sum(0)
    return total
