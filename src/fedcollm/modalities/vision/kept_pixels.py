"""The pixels of a task's images, kept in memory up to a bound, and the rules that changed these images."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from PIL import Image
from torch import Tensor

from fedcollm.modalities.vision.images import noted

#: Largest size of the pixels that a task keeps in memory, so that it need not decode them in every epoch.
CACHE_BYTES = 256 * 2**20


class _Decoded(Protocol):
    """An example in an image file."""

    @property
    def content(self) -> str:
        """The fingerprint of the pixels."""
        ...

    @property
    def rules(self) -> Sequence[str]:
        """Names of the rules that changed the image (keys of `images.RULES`)."""
        ...


class KeptPixels:
    """Makes the pixels that a model reads, [3, height, width], of each distinct image once while there is room.

    Args:
        make: returns the pixels of an image.
        shape: height and width of the pixels.
    """

    def __init__(self, make: Callable[[Image.Image], Tensor], shape: tuple[int, int]):
        self.make = make
        self.room: int = CACHE_BYTES // (4 * 3 * shape[0] * shape[1])
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._changed: dict[str, set[str]] = {}

    def of(self, example: _Decoded, image: Callable[[], Image.Image]) -> Tensor:
        """Return the pixels of an example, [3, height, width], from memory if they are kept there.

        Args:
            example: the example.
            image: returns its image.
        """
        for rule in example.rules:
            self._changed.setdefault(rule, set()).add(example.content)
        if (known := self._kept.get(example.content)) is not None:
            self._kept.move_to_end(example.content)
            return known
        made = self._kept[example.content] = self.make(image())
        while len(self._kept) > max(self.room, 1):
            self._kept.popitem(last=False)
        return made

    def notes(self) -> list[str]:
        """Return how many of the distinct images that were read are changed by each rule."""
        return noted(self._changed)
