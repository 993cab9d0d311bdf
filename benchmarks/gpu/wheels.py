"""Wheels from a folder, for a machine without a network. Knows no engine."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path


def install(folder: Path, *, target: Path) -> tuple[list[Path], str]:
    """Install what of ``folder`` is not here yet into the new folder ``target``.

    Returns the folders for PYTHONPATH, and a line for people about what was done. All in one go:
    some packages share a folder.
    """
    missing = [wheel for wheel in sorted(folder.glob("*.whl")) if not _is_installed(wheel)]
    if not missing:
        return [], f"no wheels to install from {folder.name}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-index", "--no-deps", "--no-compile", "--target", str(target)]
    done = subprocess.run([*command, *map(str, missing)], capture_output=True, text=True)
    names = ", ".join(wheel.name.split("-")[0] for wheel in missing)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["pip said nothing"]
        return [], f"the wheels of {folder.name} could not be installed ({names}): {said[-1]}"
    return [target, *_path_entries(target)], f"installed for this run: {names}"


def _is_installed(wheel: Path) -> bool:
    try:
        importlib.metadata.version(wheel.name.split("-")[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _path_entries(target: Path) -> list[Path]:
    """Return the folders that .pth files name, which Python reads in its own folders alone."""
    entries = [
        target / line.strip()
        for file in sorted(target.glob("*.pth"))
        for line in file.read_text().splitlines()
        if line.strip() and not line.startswith(("#", "import"))
    ]
    return [entry for entry in entries if entry.is_dir()]
