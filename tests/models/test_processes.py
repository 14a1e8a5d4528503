import pytest
import torch
from tests.runs.test_followers import environment

from fedcollm.errors import UserError
from fedcollm.models.processes import current, together


@pytest.fixture
def torchrun(monkeypatch):
    """Act as if torchrun had started this process."""

    def act(rank: int, count: int, **more: str) -> None:
        for name, value in (environment(rank, count) | more).items():
            monkeypatch.setenv(name, value)

    return act


def test_the_first_process_to_fail_says_why_and_the_others_end_silently(torchrun):
    def fail(*, after_another: bool) -> None:
        with together() as processes:
            assert current() is processes
            if after_another:
                assert processes.fails_first()
            raise ValueError("mine")

    torchrun(0, 1)
    with pytest.raises(ValueError, match="mine"):
        fail(after_another=False)
    assert current() is None
    with pytest.raises(SystemExit) as silent:
        fail(after_another=True)
    assert silent.value.code == 1


def test_a_process_that_is_gone_is_named_with_the_way_to_go_on(torchrun):
    torchrun(0, 1)
    with pytest.raises(UserError, match="--resume"), together():
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:33110")


def test_several_processes_that_do_not_share_a_run_are_refused(torchrun):
    torchrun(0, 2)
    with pytest.raises(UserError, match="torchrun started 2 processes"):
        current()


@pytest.mark.parametrize(("local", "error"), [("0", UserError), ("1", SystemExit)])
def test_more_processes_than_gpus_are_refused_once(torchrun, monkeypatch, local, error):
    torchrun(int(local), 2, LOCAL_RANK=local, LOCAL_WORLD_SIZE="2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(error), together():
        pass
