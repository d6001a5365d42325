"""Libraries that only training and the demo need, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, package: str | None = None) -> ModuleType:
    """Import ``module``; where it is missing, say in one sentence what to install.

    Raises:
        ImportError: naming the package (``package``, else the module's first part) and the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A dependency that is missing inside an installed package is another fault, and keeps its own message.
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise
        name = package or module.split(".")[0]
        raise ImportError(
            f"{name} is needed here and is not installed: pip install pyflowcore[demo]"
        ) from None
