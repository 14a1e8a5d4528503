"""Account for the privacy that a run spends, in a file that is written before the clients are asked."""

from pathlib import Path
from typing import Any

from fedcollm.privacy.accounting import Privacy
from fedcollm.progress import say
from fedcollm.runs import directory as directories


def announce(directory: Path, privacy: Privacy, rounds: int, done: int) -> None:
    """Say what the whole run will spend, before it spends anything.

    Args:
        directory: the run directory.
        privacy: the guarantee for the clients' updates.
        rounds: number of rounds of the run.
        done: number of rounds that are finished.
    """
    started = started_rounds(directory, done)
    total = privacy.epsilon(started + rounds - done)
    again = f", including {started - done} that started and did not finish" if started > done else ""
    say(f"privacy: {rounds} rounds will spend ε = {total:.3g} at δ = {privacy.delta:g}{again}")


def spend(directory: Path, privacy: Privacy, round_index: int) -> float:
    """Count a round that is about to start, and return the ε spent so far, including this round.

    A round counts from its start, before any client is asked. If it never finishes, clients may have answered it all
    the same, and they answer it once more, with fresh noise, when the run is resumed.
    """
    started = started_rounds(directory, round_index - 1) + 1
    epsilon = privacy.epsilon(started)
    directories.write_json(directory, directories.STARTED, {"rounds": started})
    return epsilon


def started_rounds(directory: Path, done: int) -> int:
    """Return the number of rounds ever started in a run directory, at least the number of finished rounds `done`."""
    saved: dict[str, Any] = directories.read_json(directory, directories.STARTED) or {}
    return max(done, saved.get("rounds", 0))
