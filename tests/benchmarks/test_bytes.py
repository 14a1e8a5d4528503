"""Bytes against accuracy: the rows and their differences, by hand."""

from benchmarks.bytes import differences, row


def test_differences_are_paired_by_seed():
    last = [
        ("base", 0, 0.5, 1000, 1000),
        ("base", 1, 0.4, 1000, 1000),
        ("bits", 0, 0.51, 100, 90),
        ("bits", 1, 0.4, 100, 90),
        ("bits", 2, 0.9, 100, 90),  # has no partner
        ("core", 2, 0.9, 100, 90),
    ]
    rows = [
        row("digits", way, seed, {"scores": {"slm": slm, "llm": 0.5}, "bytes_up": up, "bytes_down": down})
        for way, seed, slm, up, down in last
    ]
    assert differences(rows) == [
        {"task": "digits", "way": "bits", "seeds": 2, "slm": 0.5, "llm": 0.0, "times_less": {"up": 10.0, "down": 11.11}}
    ]
