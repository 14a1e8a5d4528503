"""The digits that scikit-learn ships."""

from fedcollm.data.sources.digits import CLASSES, load_digit_images


def test_digits_are_1797_images_from_0_to_1():
    pool = load_digit_images()
    assert len(pool.train) == 1797
    assert pool.test is None
    assert {example.target for example in pool.train} == set(range(10))
    assert pool.train[0].pixels.shape == (1, 8, 8)
    assert min(e.pixels.min().item() for e in pool.train) == 0.0
    assert max(e.pixels.max().item() for e in pool.train) == 1.0
    assert len({example.id for example in pool.train}) == 1797
    assert {example.label for example in pool.train} == set(CLASSES)
