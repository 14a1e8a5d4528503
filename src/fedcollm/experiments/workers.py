"""Several runs at once, each in a process of its own; `python -m fedcollm.experiments.workers` is such a process.

A child reads what to do from its standard input, and ends when that is closed, as it is when its parent ends. Its
records are read off its run directory, so that one that is shown is safe on disk.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcollm.config import RunConfig
from fedcollm.errors import UserError
from fedcollm.experiments.hardware import threads_each
from fedcollm.messages import RoundRecord
from fedcollm.runs import directory as directories
from fedcollm.runs.build import Inputs
from fedcollm.runs.runner import rounds

_LOOK_SECONDS, _STOP_SECONDS = 0.1, 10.0
_OMP = "OMP_NUM_THREADS"
#: Ctrl-C is for the parent, which ends the children: a session of their own on Unix, a process group on Windows.
_NEW_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)


@dataclass(frozen=True)
class Job:
    """One run to do, or to go on with.

    Attributes:
        place: its name, and its directory relative to that of the comparison.
        config: of the run.
        directory: of the run.
        inputs: what it is given beside its configuration; only `shared` can go to another process.
    """

    place: str
    config: RunConfig
    directory: Path
    inputs: Inputs

    def to_json(self) -> str:
        """One line of JSON."""
        paths = [str(path.absolute()) for path in (self.directory, self.inputs.shared or Path())]
        return json.dumps([self.place, self.config.model_dump(mode="json"), *paths])

    @classmethod
    def from_json(cls, line: str) -> "Job":
        """Inverse of `to_json`."""
        place, config, directory, shared = json.loads(line)
        return cls(place, RunConfig.model_validate(config), Path(directory), Inputs(shared=Path(shared)))

    def records(self) -> Iterator[RoundRecord]:
        """Do the run in this process, from where it stopped; its records as they come, the old ones first."""
        exists = (self.directory / directories.CONFIG).exists()
        yield from rounds(self.config, self.directory, self.inputs, resume=exists)


@dataclass(frozen=True)
class Failed:
    """A run that did not end well.

    Attributes:
        place: its name.
        message: what happened.
        fault: whether it is fedcollm's and not the user's to mend.
    """

    place: str
    message: str
    fault: bool = False


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen[str]
    errors: Any
    seen: int = 0

    @classmethod
    def start(cls, job: Job, threads: int) -> "_Child":
        errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, "-m", "fedcollm.experiments.workers"],
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            encoding="utf-8",
            env=os.environ | {_OMP: str(threads), "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,  # ignored on Windows
            creationflags=_NEW_GROUP,
        )
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):  # it ended at once: its exit status says why
            process.stdin.write(job.to_json() + "\n")
            process.stdin.flush()
        return cls(job, process, errors)

    def news(self) -> list[RoundRecord]:
        """Records that were not there before."""
        records = directories.read_records(self.job.directory)
        new, self.seen = records[self.seen :], max(self.seen, len(records))
        return new

    def failure(self) -> Failed | None:
        """What went wrong in a process that has ended."""
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        self._close()
        status = self.process.returncode
        if status == 0:
            return None
        if status < 0:
            killed = f"its process was killed by signal {-status}; if memory ran out, lower --jobs"
            return Failed(self.job.place, killed)
        try:
            return Failed(self.job.place, str(json.loads(lines[-1])["error"]), fault=status != 2)
        except (IndexError, ValueError, TypeError, KeyError):
            return Failed(self.job.place, "\n".join(lines[-20:]) or f"exit status {status}", fault=True)

    def stop(self) -> None:
        """End it; its run directory is whole at any moment."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        self.errors.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]


def in_processes(jobs: Sequence[Job], count: int, failed: list[Failed]) -> Iterator[tuple[str, RoundRecord]]:
    """Do jobs, so many at once; yield place and record as rounds end.

    Args:
        jobs: each with a directory of its own.
        count: processes at once.
        failed: gets the jobs that fail; the others go on.
    """
    waiting, threads = list(reversed(jobs)), threads_each(min(count, max(len(jobs), 1)))
    children: list[_Child] = []
    try:
        while waiting or children:
            while waiting and len(children) < count:
                children.append(_Child.start(waiting.pop(), threads))
            time.sleep(_LOOK_SECONDS)
            ended = [child for child in children if child.process.poll() is not None]
            for child in children:
                for record in child.news():
                    yield child.job.place, record
            for child in ended:
                children.remove(child)
                failed += [failure] if (failure := child.failure()) else []
    finally:
        for child in children:
            child.stop()


def in_this_process(jobs: Sequence[Job], failed: list[Failed]) -> Iterator[tuple[str, RoundRecord]]:
    """Do jobs one after the other; yield place and record as rounds end; what the user can mend goes to `failed`."""
    for job in jobs:
        try:
            for record in job.records():
                yield job.place, record
        except UserError as error:
            failed.append(Failed(job.place, str(error)))


def raise_for(failed: Sequence[Failed]) -> None:
    """Say which runs failed, and why the first one did.

    Raises:
        UserError: they are for the user to mend.
        RuntimeError: one of them is fedcollm's fault.
    """
    if not failed:
        return
    first = next((one for one in failed if one.fault), failed[0])
    others = [one.place for one in failed if one is not first]
    more = f"\nFailed too: {', '.join(others)}." if others else ""
    kind = RuntimeError if first.fault else UserError
    raise kind(f"{first.place}: {first.message}{more}")


def _end_with_parent() -> None:
    sys.stdin.read()  # until the parent closes it, or ends
    os._exit(130)


def main() -> int:
    """Do the one job on standard input; if it fails, the last line of standard error is JSON with the error."""
    job = Job.from_json(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for _ in job.records():
            pass
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=sys.stderr)
        return 2
    except Exception:
        print(json.dumps({"error": traceback.format_exc()}), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # a thread still waits for the parent
