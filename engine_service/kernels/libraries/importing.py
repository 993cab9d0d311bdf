"""Tells a library that is not installed from one that is and does not work."""

import importlib
from collections.abc import Sequence
from typing import Any

from engine_service.kernels.paged_attention import MissingError, UnfitError


def import_first(names: Sequence[str], *, library: str) -> Any:
    """Return the first of these modules that there is.

    Raises:
        MissingError: none is there.
        UnfitError: one is, and cannot be imported.
    """
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Only where the name itself, or a package on the way to it, is what is not there.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise UnfitError(f"{library} cannot be imported: {error}") from error
        except (ImportError, OSError) as error:  # built for another torch, or without its libraries
            raise UnfitError(f"{library} cannot be imported: {error}") from error
    raise MissingError(f"{library} is not installed (no module {' or '.join(names)})")


def function_of(module: Any, name: str, *, library: str) -> Any:
    """Return what a version of it may lack. Raises UnfitError where it does."""
    found = getattr(module, name, None)
    if found is None:
        version = getattr(module, "__version__", "this version")
        raise UnfitError(f"{library} {version} has no {name}")
    return found


def version_of(module: Any) -> str:
    return str(getattr(module, "__version__", "of unknown version"))
