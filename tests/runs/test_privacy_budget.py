"""How many rounds have spent privacy, also where the count is lost."""

from dataclasses import dataclass

import pytest

from fedcollm.messages import RoundRecord
from fedcollm.runs.directory import STARTED, save_round
from fedcollm.runs.privacy_budget import spend, started_rounds


@dataclass
class Linear:
    """Each round spends 0.5."""

    delta: float = 1e-5

    def epsilon(self, rounds: int) -> float:
        return 0.5 * rounds


def test_count_that_is_lost_comes_from_the_last_record(tmp_path):
    privacy = Linear()
    for _ in range(3):  # the first round was started three times
        epsilon = spend(tmp_path, privacy, 1)
    assert epsilon == 1.5
    save_round(tmp_path, RoundRecord(1, epsilon=epsilon), {})
    assert started_rounds(tmp_path, privacy, 1) == 3
    (tmp_path / STARTED).unlink()
    assert started_rounds(tmp_path, privacy, 1) == 3
    assert spend(tmp_path, privacy, 2) == 2.0


@pytest.mark.parametrize("done", [0, 2])
def test_without_records_only_finished_rounds_count(tmp_path, done):
    assert started_rounds(tmp_path, Linear(), done) == done
