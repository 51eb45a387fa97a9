"""Environments of their own for packages that a test compares with, and that must not be among ours."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_INSTALL_TIMEOUT_S = 900


def python_with(*requirements: str) -> str:
    """The Python of an environment with these packages, made once for all test runs of this user.

    Skips the test, with the reason, where the package index does not give them.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "enginehouse/tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"environment-{hashlib.sha256(' '.join(requirements).encode()).hexdigest()[:16]}"
    python = folder / "bin" / "python"
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "--only-binary=:all:", *requirements]
            try:
                done = subprocess.run(install, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                pytest.skip(f"{' '.join(requirements)} did not come within {_INSTALL_TIMEOUT_S} s")
            if done.returncode != 0:
                pytest.skip(f"{' '.join(requirements)} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
            (folder / "complete").touch()
    return str(python)
