"""Import a library that only the audit needs, which the extra `audit` installs."""

import importlib
from typing import Any

from fedcollm.errors import UserError


def audit_library(module: str, package: str = "") -> Any:
    """Return a module, imported.

    Args:
        module: its name.
        package: the package that holds it, if that has another name.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module.partition(".")[0]
        raise UserError(f"this part of the audit needs {name}. Install it: pip install 'fedcollm[audit]'") from error
