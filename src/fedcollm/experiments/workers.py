"""Do several runs at the same time, each in a process started as `python -m fedcollm.experiments.workers`.

A child reads its job from standard input, and ends when the parent closes it or ends. The parent reads the child's
records from its run directory, so that every record it shows is already safe on disk.
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
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedcollm.config import RunConfig
from fedcollm.errors import UserError
from fedcollm.experiments.hardware import threads_each
from fedcollm.messages import RoundRecord
from fedcollm.progress import counting, track
from fedcollm.runs import directory as directories
from fedcollm.runs.build import Inputs
from fedcollm.runs.runner import rounds

_LOOK_SECONDS, _STOP_SECONDS = 0.1, 10.0
_OMP = "OMP_NUM_THREADS"
#: Ctrl-C must reach the parent only, which then stops the children. For that, each child has a session of its own on
#: Unix, and a process group of its own on Windows.
_NEW_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)


@dataclass(frozen=True)
class Job:
    """One run to start or to resume.

    Attributes:
        place: name of the run: its directory relative to that of the comparison.
        config: the run's configuration.
        directory: the run directory.
        inputs: what the run is given in addition to its configuration; only `shared` can be sent to another process.
    """

    place: str
    config: RunConfig
    directory: Path
    inputs: Inputs

    def to_json(self) -> str:
        """Return the job as one line of JSON."""
        paths = [str(path.absolute()) for path in (self.directory, self.inputs.shared or Path())]
        return json.dumps([self.place, self.config.model_dump(mode="json"), *paths])

    @classmethod
    def from_json(cls, line: str) -> "Job":
        """Return the job that `to_json` wrote."""
        place, config, directory, shared = json.loads(line)
        return cls(place, RunConfig.model_validate(config), Path(directory), Inputs(shared=Path(shared)))

    def records(self) -> Iterator[RoundRecord]:
        """Start or resume the run in this process; yield its records, those of finished rounds first."""
        exists = (self.directory / directories.CONFIG).exists()
        yield from rounds(self.config, self.directory, self.inputs, resume=exists)


@dataclass(frozen=True)
class Failed:
    """A run that failed.

    Attributes:
        place: name of the run.
        message: what happened.
        fault: whether the cause is a fault of fedcollm and not the user's input.
    """

    place: str
    message: str
    fault: bool = False


@dataclass
class _Child:
    """A process that does one job.

    Attributes:
        job: the job.
        process: the process.
        errors: temporary file with its output and its errors.
        seen: number of its records that were returned so far.
    """

    job: Job
    process: subprocess.Popen[str]
    errors: IO[str]
    seen: int = 0

    @classmethod
    def start(cls, job: Job, threads: int) -> "_Child":
        """Start a process with this number of threads, and send it the job."""
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
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and `failure` says why
            process.stdin.write(job.to_json() + "\n")
            process.stdin.flush()
        return cls(job, process, errors)

    def news(self) -> list[RoundRecord]:
        """Return the records that were not returned before."""
        records = directories.read_records(self.job.directory)
        new, self.seen = records[self.seen :], max(self.seen, len(records))
        return new

    def failure(self) -> Failed | None:
        """Return what went wrong in a process that has ended; None if nothing did."""
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
        """Stop the process; its run directory can be resumed at any moment."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        self.errors.close()
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


def in_processes(jobs: Sequence[Job], count: int, failed: list[Failed]) -> Iterator[tuple[str, RoundRecord]]:
    """Do jobs in processes of their own.

    Args:
        jobs: the jobs, each with a run directory of its own.
        count: number of processes at the same time.
        failed: list to which jobs that fail are added; the other jobs go on.

    Yields:
        The name of a run and the record of its round, after each round.
    """
    waiting, threads = list(reversed(jobs)), threads_each(min(count, max(len(jobs), 1)))
    children: list[_Child] = []
    with counting("runs", total=len(jobs)) as step, _stopping(children):
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
                step()


@contextlib.contextmanager
def _stopping(children: Sequence[_Child]) -> Generator[None, None, None]:
    """Stop the children that are left at the end of the `with` block, however it ends."""
    try:
        yield
    finally:
        for child in children:
            child.stop()


def in_this_process(jobs: Sequence[Job], failed: list[Failed]) -> Iterator[tuple[str, RoundRecord]]:
    """Do jobs one after the other in this process.

    Args:
        jobs: the jobs.
        failed: list to which jobs that fail because of the user's input are added; the other jobs go on.

    Yields:
        The name of a run and the record of its round, after each round.
    """
    for job in track(jobs, "runs", total=len(jobs)):
        try:
            for record in job.records():
                yield job.place, record
        except UserError as error:
            failed.append(Failed(job.place, str(error)))


def raise_for(failed: Sequence[Failed]) -> None:
    """Raise an error that names the runs that failed, and says why the first of them did; return if none failed.

    Raises:
        UserError: all of them failed because of the user's input.
        RuntimeError: at least one of them failed because of a fault of fedcollm.
    """
    if not failed:
        return
    first = next((one for one in failed if one.fault), failed[0])
    others = [one.place for one in failed if one is not first]
    more = f"\nAlso failed: {', '.join(others)}." if others else ""
    kind = RuntimeError if first.fault else UserError
    raise kind(f"{first.place}: {first.message}{more}")


def _end_with_parent() -> None:
    sys.stdin.read()  # returns when the parent closes it or ends
    os._exit(130)


def main() -> int:
    """Do the job on standard input. If it fails, write the error as JSON on the last line of standard error.

    Returns:
        The exit status: 0 for success, 2 if the user's input is wrong, 1 for a fault of fedcollm.
    """
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
    status: int = main()
    sys.stderr.flush()
    os._exit(status)  # a normal exit would wait for the thread that reads standard input
