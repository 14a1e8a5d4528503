"""Files that are whole at any moment, and locks that hold between processes."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import SoftFileLock
from tests.conftest import PATIENCE_SECONDS

from fedcollm import storage
from fedcollm.errors import UserError
from fedcollm.storage import (
    append_to,
    cached_json,
    check_place,
    locked,
    one_at_a_time,
    remove_leftovers,
    replacing,
    replacing_directory,
    write_atomically,
    writing,
)


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- files ---


def test_text_is_the_same_bytes_on_every_platform(tmp_path):
    write_atomically(tmp_path / "a.txt", "ε\nend\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xce\xb5\nend\n"


def test_failed_write_keeps_the_old_file_and_no_other(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    write_atomically(file, "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_block_that_fails_replaces_nothing(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"), replacing(tmp_path / "a.bin") as temporary:
        full_disk(temporary.write_bytes(b"half"))
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_two_writers_at_once_have_files_of_their_own(tmp_path):
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as two:
        assert one != two
        assert one.parent == two.parent == tmp_path
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a").read_text() == "one"  # which ended last
    assert names(tmp_path) == ["a"]


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    for name in ("a", ".a-0123", ".b-0123", "a-0123"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "a")
    assert names(tmp_path) == [".b-0123", "a", "a-0123"]


def test_file_that_is_being_read_is_replaced_when_the_reader_is_done(tmp_path, monkeypatch):
    replace, attempts = os.replace, []

    def busy(source, target):
        attempts.append(target)
        if len(attempts) < 3:
            raise PermissionError(13, "in use by another process")
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(storage, "_READERS_SECONDS", 60.0)
    write_atomically(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert len(attempts) == 3


def test_directory_that_is_not_writable_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"can't be written.*No such file"), writing(tmp_path / "missing"):
        write_atomically(tmp_path / "missing" / "a", "")


# --- locks ---


@pytest.fixture(params=["native", "soft"])
def kind(request, monkeypatch) -> str:
    """The lock of this platform, and the one of platforms that have none."""
    if request.param == "soft":
        monkeypatch.setattr(storage, "FileLock", SoftFileLock)
    return request.param


LOCKED = """
import sys
from pathlib import Path
from fedcollm import storage
if sys.argv[2] == "soft":
    from filelock import SoftFileLock
    storage.FileLock = SoftFileLock
lock = storage.locked(Path(sys.argv[1]))
lock.__enter__()
print("held", flush=True)
sys.stdin.read()
"""


def holder(directory: Path, kind: str) -> subprocess.Popen[str]:
    """Another process that asks for the lock, and holds it until it is killed or its standard input is closed."""
    command = [sys.executable, "-c", LOCKED, str(directory), kind]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_lock_makes_the_directory_and_refuses_a_second_holder(tmp_path, kind):
    directory = tmp_path / "a" / "b"
    with locked(directory):
        assert directory.is_dir()
        with pytest.raises(UserError, match="in use"), locked(directory):
            pytest.fail("locked twice")
    with locked(directory):
        assert directory.is_dir()


def test_lock_is_released_when_the_holder_fails(tmp_path, kind):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_lock_holds_against_another_process(tmp_path, kind):
    with locked(tmp_path):
        out, errors = holder(tmp_path, kind).communicate(timeout=PATIENCE_SECONDS)
    assert out == ""
    assert "UserError" in errors
    assert holder(tmp_path, kind).communicate(timeout=PATIENCE_SECONDS)[0] == "held\n"


def test_lock_of_a_process_that_was_killed_is_free(tmp_path, kind):
    process = holder(tmp_path, kind)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="in use"), locked(tmp_path):
        pytest.fail("locked twice")
    process.kill()
    process.communicate()
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_lock_may_be_released_by_another_thread(tmp_path, kind):
    lock = locked(tmp_path)
    lock.__enter__()
    thread = threading.Thread(target=lock.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_directory_that_is_removed_while_it_is_locked_is_no_error(tmp_path, kind):
    directory = tmp_path / "run"
    with locked(directory):
        (directory / ".lock").unlink()
        directory.rmdir()
    assert not directory.exists()


def test_directory_that_cannot_be_made_is_the_users_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can't be made, because .*file is a file\. Choose another --out\.$"):
        locked(tmp_path / "file" / "a" / "run").__enter__()
    for directory, words in ((tmp_path / "file", "file is a file"), (tmp_path / ("x" * 300), "name too long")):
        with pytest.raises(UserError, match=words) as error:
            check_place(directory)
        assert "Free some space" not in str(error.value)
    check_place(tmp_path / "new" / "run")
    assert [place.name for place in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("code", "room"), [(errno.ENOSPC, True), (errno.EACCES, False), (errno.EROFS, False)])
def test_more_room_is_advised_only_where_it_helps(tmp_path, code, room):
    with pytest.raises(UserError, match="can't be written") as error, writing(tmp_path):
        raise OSError(code, "no")
    assert ("Free some space" in str(error.value)) == room


def test_a_file_is_made_once_and_found_by_those_who_waited(tmp_path, kind):
    file, made = tmp_path / "kept" / "a", []

    def make():
        with one_at_a_time(file):
            if not file.exists():
                made.append(threading.get_ident())
                write_atomically(file, "whole")

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert file.read_text() == "whole"


# --- the cache ---


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never():
    raise AssertionError("made again")


def test_a_value_is_made_once(cache):
    assert cached_json("a", [1], lambda: {"ε": (1, "x")}) == {"ε": [1, "x"]}
    assert cached_json("a", [1], never) == {"ε": [1, "x"]}
    assert len(names(cache)) == 1


def test_a_value_made_of_something_else_is_made_again(cache):
    assert [cached_json("a", [made_of], lambda made_of=made_of: made_of) for made_of in (1, 2)] == [1, 2]
    assert [cached_json("a", [made_of], never) for made_of in (1, 2)] == [1, 2]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: data.replace(b"7", b"8")])
def test_a_damaged_value_is_made_again(cache, damage):
    cached_json("a", None, lambda: ["x", "77"])
    [file] = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert cached_json("a", None, lambda: ["x", "77"]) == ["x", "77"]
    assert file.read_bytes() == whole


def test_bytes_that_are_no_text_are_made_again(cache):
    cached_json("a", None, lambda: 1)
    [file] = cache.iterdir()
    file.write_bytes(b"\xff\xfe")
    assert cached_json("a", None, lambda: 1) == 1


def test_where_the_cache_cannot_be_written_the_value_is_made_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDCOLLM_CACHE", str(tmp_path / "file" / "cache"))
    assert [cached_json("a", None, lambda n=n: n) for n in (1, 2)] == [1, 2]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX ones")
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_only_the_owner_reads_what_is_written_whatever_the_umask(tmp_path, umask):
    before, place = os.umask(umask), tmp_path / "runs" / "one"
    try:
        with locked(place):
            write_atomically(place / "private", "x")
            write_atomically(place / "public", "x", mode=0o644)
            os.close(append_to(place / "log"))
            with replacing_directory(place / "adapter") as temporary:
                assert temporary.stat().st_mode & 0o777 == 0o700
                (temporary / "deep").mkdir(0o777)
                (temporary / "deep" / "file").touch(0o666)
            with replacing(place / "half") as half:
                assert half.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    modes = {str(file.relative_to(tmp_path)): file.stat().st_mode & 0o777 for file in tmp_path.rglob("*")}
    assert modes.pop("runs/one/public") == 0o644
    directories = {"runs", "runs/one", "runs/one/adapter", "runs/one/adapter/deep"}
    assert {name for name, mode in modes.items() if mode == 0o700} == directories
    assert {name for name, mode in modes.items() if mode == 0o600} == modes.keys() - directories
    assert len(modes) == 9  # the lock too


@pytest.mark.skipif(os.name != "posix", reason="links need privileges elsewhere")
def test_symbolic_links_are_replaced_and_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("old")
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "directory").symlink_to(tmp_path / "place")
    with pytest.raises(OSError, match="link"):
        append_to(tmp_path / "link")
    write_atomically(tmp_path / "link", "new")
    with replacing_directory(tmp_path / "directory") as temporary:
        (temporary / "file").write_text("new")
    assert (tmp_path / "elsewhere").read_text() == (tmp_path / "place" / "file").read_text() == "old"
    assert (tmp_path / "link").read_text() == (tmp_path / "directory" / "file").read_text() == "new"
    assert not (tmp_path / "link").is_symlink()
    assert not (tmp_path / "directory").is_symlink()


def test_temporary_name_can_neither_be_guessed_nor_be_taken(tmp_path, monkeypatch):
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as two:
        assert one.name != two.name
        one.touch()
        two.touch()
    monkeypatch.setattr(storage.secrets, "token_hex", lambda size: "0" * 2 * size)
    (tmp_path / ".a-0000000000000000").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a", "new")
    assert not (tmp_path / "victim").exists()


def test_directory_is_replaced_as_a_whole_and_not_if_the_block_fails(tmp_path):
    for name in ("adapter", ".adapter-0123abcd", ".other-0123abcd"):  # the second is a killed process's
        (tmp_path / name).mkdir()
    (tmp_path / "adapter" / "old").touch()
    with pytest.raises(OSError, match="No space left"), replacing_directory(tmp_path / "adapter") as temporary:
        full_disk((temporary / "new").touch())
    assert names(tmp_path / "adapter") == ["old"]
    with replacing_directory(tmp_path / "adapter") as temporary:
        (temporary / "new").touch()
    assert names(tmp_path / "adapter") == ["new"]
    assert names(tmp_path) == [".other-0123abcd", "adapter"]
