"""Virtual environments made on demand from the pins of a TensorRT-LLM version.

Every package is pinned by version and hash, and comes from one index alone: those after the marker line of the pins
file from ENGINEHOUSE_TOOLCHAIN_INDEX, all others from the index that pip is configured with. So neither index sees a
request for a package of the other, or can supply it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from infra.errors import SettingsError

PIN_FILES = Path(__file__).with_name("pins")
SECOND_INDEX = "# from the second index:"
"""The line of a pins file after which packages come from ENGINEHOUSE_TOOLCHAIN_INDEX."""

_COMPLETE = "complete"
"""The file that is written last, with the digest of the pins that the environment was made from."""

# A package may run code when it is built, so pip gets no credentials beside its own.
_INHERITED = (
    *("PATH", "LANG", "LC_ALL", "TMPDIR"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "PIP_CERT", "PIP_PROXY", "PIP_DEFAULT_TIMEOUT"),
)
# The ordinary index is configured by pip's own variables, and by files below HOME and in the system.
_OF_THE_ORDINARY_INDEX = ("HOME", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS")


@dataclass(frozen=True)
class Pins:
    """A pins file: `python` as `3.10`, and requirements with their hashes."""

    python: str
    ordinary: str
    second: str
    digest: str


def environment(folder: Path, version: str, second_index: str, pins_folder: Path = PIN_FILES) -> Path:
    """The environment of `version` below `folder`. Makes it if it is missing; waits while another process makes it.

    Raises SettingsError: `toolchain-unpinned` without a pins file, `toolchain-index` if `second_index` is needed and
    empty, `toolchain-python` without the interpreter that the pins are for, `toolchain-install` if pip failed.
    """
    pins = read(pins_folder / f"{Version(version)}.txt", version)
    place = folder / str(Version(version))
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{place.name}.lock") as lock:
        complete = place / _COMPLETE
        if complete.is_file() and complete.read_text() == pins.digest:
            return place
        # Left by a maker that was killed, or made from other pins.
        shutil.rmtree(place, ignore_errors=True)
        _make(place, pins, second_index, lock)
        complete.write_text(pins.digest)
    return place


def read(path: Path, version: str) -> Pins:
    """The pins in `path`. Raises SettingsError `toolchain-unpinned` if there is no such file, or it names no Python."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise SettingsError(
            f"no pins for a virtual environment of TensorRT-LLM {version}: {path} does not exist",
            hint=f"make it as {path.with_name('README.md')} describes, or set ENGINEHOUSE_TOOLCHAIN to venv:/path",
            code="toolchain-unpinned",
        ) from None
    python = re.search(r"^# python: (3\.\d+)$", text, re.MULTILINE)
    if python is None:
        raise SettingsError(f"{path} has no line '# python: 3.N'", code="toolchain-unpinned")
    ordinary, _, second = text.partition(f"\n{SECOND_INDEX}\n")
    return Pins(python[1], ordinary, second, hashlib.sha256(text.encode()).hexdigest())


@contextmanager
def _locked(path: Path) -> Generator[int]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _make(place: Path, pins: Pins, second_index: str, lock: int) -> None:
    if pins.second and not second_index:
        raise SettingsError(
            "ENGINEHOUSE_TOOLCHAIN_INDEX is not set, but TensorRT-LLM's wheels are not on the ordinary package index",
            hint="set it to the URL of NVIDIA's package index, or of your mirror of it",
            code="toolchain-index",
        )
    python = shutil.which(f"python{pins.python}")
    if python is None:
        raise SettingsError(
            f"the pins are for Python {pins.python}, but there is no python{pins.python} in PATH",
            hint=f"install it, with its module venv: apt-get install python{pins.python}-venv",
            code="toolchain-python",
        )
    inherited = _variables(_INHERITED)
    of_pip = [name for name in os.environ if name.startswith("PIP_")]
    ordinary = {**inherited, **_variables((*_OF_THE_ORDINARY_INDEX, *of_pip))}
    # No configuration: it may add other indexes. A variable, since a URL may hold a password, and arguments are public.
    second = {**inherited, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": second_index}
    # TensorRT's source package otherwise asks an index of its own for the rest of it.
    second["NVIDIA_TENSORRT_DISABLE_INTERNAL_PIP"] = "1"
    _run([python, "-m", "venv", str(place)], ordinary, lock)
    install = [
        *(str(place / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"),
        *("--no-deps", "--require-hashes", "--no-cache-dir"),
    ]
    (place / "ordinary.txt").write_text(pins.ordinary)
    _run([*install, "--only-binary=:all:", "-r", str(place / "ordinary.txt")], ordinary, lock)
    if pins.second:
        (place / "second.txt").write_text(pins.second)
        # What must be built is built with the pinned setuptools of the first list: an isolated build would fetch one.
        _run([*install, "--no-build-isolation", "-r", str(place / "second.txt")], second, lock)


def _variables(names: Sequence[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


def _run(argv: Sequence[str], environment: Mapping[str, str], lock: int) -> None:
    # The child holds the lock too: if this process is killed, no other removes the folder that pip still writes to.
    ran = subprocess.run(
        argv,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        pass_fds=(lock,),
    )
    if ran.returncode != 0:
        raise SettingsError(
            f"the toolchain's environment could not be made: {' '.join(argv)}\n{ran.stdout[-3000:].strip()}",
            hint="nothing half-made is used: run it again when the cause is gone",
            code="toolchain-install",
        )
