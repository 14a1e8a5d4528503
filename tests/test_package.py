"""What the package exports."""

import subprocess
import sys

import pytest

import fedcollm


def test_every_exported_name_can_be_imported_and_is_listed():
    assert fedcollm.__all__ == sorted(fedcollm.__all__)
    assert set(fedcollm.__all__) <= set(dir(fedcollm))
    for name in fedcollm.__all__:
        assert getattr(fedcollm, name).__name__ == name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="frobnicate"):
        fedcollm.frobnicate  # noqa: B018


def test_import_is_light():
    code = "import sys, fedcollm; dir(fedcollm); print('torch' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
