"""A source of randomness whose draws are known."""

import random


class Fixed(random.Random):
    """Draws the same point of every range, from 0 (its lower end) to 1 (its upper one); shuffling turns around."""

    def __init__(self, point: float):
        super().__init__(0)
        self.point = point

    def random(self) -> float:
        return self.point

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.point

    def randint(self, a: int, b: int) -> int:
        return a + round((b - a) * self.point)

    def shuffle(self, x) -> None:
        x.reverse()
