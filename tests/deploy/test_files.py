"""Files of a deployment that are made once: never over another file, and never through a link."""

import os

import pytest

from fedcollm.deploy.files import create
from fedcollm.errors import UserError


@pytest.mark.skipif(os.name != "posix", reason="permissions and links are POSIX ones")
def test_file_is_made_once_with_its_mode_and_never_through_a_link(tmp_path):
    place, before = tmp_path / "made" / "here", os.umask(0)
    try:
        create(place / "key", b"x", secret=True)
        create(place / "text", "x")
    finally:
        os.umask(before)
    assert [(place / name).stat().st_mode & 0o777 for name in ("key", "text")] == [0o600, 0o644]
    assert [directory.stat().st_mode & 0o777 for directory in (place, place.parent)] == [0o700, 0o700]
    (place / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("key", "link"):
        with pytest.raises(UserError, match="can't be written"):
            create(place / name, "other")
    assert (place / "key").read_text() == "x"
    assert not (tmp_path / "elsewhere").exists()
