"""Account for the privacy that a run spends, in a file that is written before the clients are asked."""

from pathlib import Path
from typing import Any

from fedcollm.privacy.accounting import Privacy
from fedcollm.progress import say
from fedcollm.runs import directory as directories

_MOST_REPEATED = 10_000  # rounds that started and did not finish, at which the search for a lost count ends


def announce(directory: Path, privacy: Privacy, rounds: int, done: int) -> None:
    """Say what the whole run will spend, before it spends anything.

    Args:
        directory: the run directory.
        privacy: the guarantee for the clients' updates.
        rounds: number of rounds of the run.
        done: number of rounds that are finished.
    """
    started = started_rounds(directory, privacy, done)
    total = privacy.epsilon(started + rounds - done)
    again = f", including {started - done} that started and did not finish" if started > done else ""
    say(f"privacy: {rounds} rounds will spend ε = {total:.3g} at δ = {privacy.delta:g}{again}")


def spend(directory: Path, privacy: Privacy, round_index: int) -> float:
    """Count a round that is about to start, and return the ε spent so far, including this round.

    A round counts from its start, before any client is asked. If it never finishes, clients may have answered it all
    the same, and they answer it once more, with fresh noise, when the run is resumed.
    """
    started = started_rounds(directory, privacy, round_index - 1) + 1
    epsilon = privacy.epsilon(started)
    directories.write_json(directory, directories.STARTED, {"rounds": started})
    return epsilon


def started_rounds(directory: Path, privacy: Privacy, done: int) -> int:
    """Return the number of rounds ever started in a run directory, at least the number of finished rounds `done`.

    Where the file is gone, it is the smallest number whose ε is that of the last record.
    """
    saved: dict[str, Any] | None = directories.read_json(directory, directories.STARTED)
    if saved is not None:
        return max(done, saved.get("rounds", 0))
    records, started = directories.read_records(directory), done
    spent = (records[-1].epsilon if records else None) or 0.0
    while started < done + _MOST_REPEATED and privacy.epsilon(started) < spent * (1 - 1e-9):
        started += 1
    return started
