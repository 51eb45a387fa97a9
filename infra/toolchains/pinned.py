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
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from infra.errors import SettingsError

PIN_FILES = Path(__file__).with_name("pins")
SECOND_INDEX = "# from the second index:"
"""The line of a pins file after which packages come from ENGINEHOUSE_TOOLCHAIN_INDEX."""

COMPLETE = "complete"
"""The file that is written last, with the digest of the pins that the environment was made from."""

# A package may run code when it is built, so pip gets no credentials beside its own.
_INHERITED = (
    *("PATH", "LANG", "LC_ALL", "TMPDIR"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "PIP_CERT", "PIP_PROXY", "PIP_DEFAULT_TIMEOUT"),
)
# The ordinary index is configured by pip's own variables, and by files below HOME and in the system.
_OF_THE_ORDINARY_INDEX = ("HOME", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS")


Install = Callable[[Sequence[str], Mapping[str, str]], None]
"""Calls `pip install` with these arguments and no more variables than these."""


@dataclass(frozen=True)
class Pins:
    """A pins file: `python` as `3.10`, and requirements with their hashes."""

    python: str
    ordinary: str
    second: str
    digest: str


def environment(folder: Path, version: str, second_index: str, pins_folder: Path = PIN_FILES) -> Path:
    """The environment of `version` below `folder`. Makes it if it is missing; waits while another process makes it.

    Without pins it is one that `enginehouse toolchain add` has made. Raises SettingsError: `toolchain-unpinned` without
    either, `toolchain-index` if `second_index` is needed and empty, `toolchain-python` without the interpreter that the
    pins are for, `toolchain-install` if pip failed.
    """
    place = folder / str(Version(version))
    if not (path := pins_file(pins_folder, version)).is_file() and (place / COMPLETE).is_file():
        return place
    pins = read(path, version)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"{place.name}.lock") as lock:
        complete = place / COMPLETE
        if complete.is_file() and complete.read_text() == pins.digest:
            return place
        # Left by a maker that was killed, or made from other pins.
        shutil.rmtree(place, ignore_errors=True)
        _make(place, pins, second_index, lock)
        complete.write_text(pins.digest)
    return place


def pins_file(folder: Path, version: str) -> Path:
    """The file in `folder` that has the pins of `version`, whether it is there or not."""
    return folder / f"{Version(version)}.txt"


def read(path: Path, version: str) -> Pins:
    """The pins in `path`. Raises SettingsError `toolchain-unpinned` if there is no such file, or it names no Python."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise SettingsError(
            f"no pins for a virtual environment of TensorRT-LLM {version}: {path} does not exist",
            hint=f"`enginehouse toolchain add {version}` makes one without; pins are made as "
            f"{path.with_name('README.md')} describes",
            code="toolchain-unpinned",
        ) from None
    python = re.search(r"^# python: (3\.\d+)$", text, re.MULTILINE)
    if python is None:
        raise SettingsError(f"{path} has no line '# python: 3.N'", code="toolchain-unpinned")
    ordinary, _, second = text.partition(f"\n{SECOND_INDEX}\n")
    return Pins(python[1], ordinary, second, hashlib.sha256(text.encode()).hexdigest())


@contextmanager
def locked(path: Path) -> Generator[int]:
    """Hold the lock of an environment in the block: the file's descriptor, which children inherit."""
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
    ordinary, inherited = variables_of_the_ordinary_index(), _variables(_INHERITED)
    # No configuration: it may add other indexes. A variable, since a URL may hold a password, and arguments are public.
    second = {**inherited, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": second_index}
    # TensorRT's source package otherwise asks an index of its own for the rest of it.
    second["NVIDIA_TENSORRT_DISABLE_INTERNAL_PIP"] = "1"
    exactly = ("--no-deps", "--require-hashes")
    with installing(place, pins.python, lock) as install:
        (place / "ordinary.txt").write_text(pins.ordinary)
        install([*exactly, "--only-binary=:all:", "-r", str(place / "ordinary.txt")], ordinary)
        if pins.second:
            (place / "second.txt").write_text(pins.second)
            # What must be built is built with the pinned setuptools of the first list: an isolated build fetches one.
            install([*exactly, "--no-build-isolation", "-r", str(place / "second.txt")], second)


@contextmanager
def installing(place: Path, python: str, lock: int) -> Generator[Install]:
    """Make the empty environment `place` of an interpreter such as `3.10`: what yields installs into it.

    Raises SettingsError `toolchain-python` without that interpreter, and `toolchain-install` if a call fails.
    """
    found = shutil.which(f"python{python}")
    if found is None:
        raise SettingsError(
            f"its packages are for Python {python}, but there is no python{python} in PATH",
            hint=f"install it, with its module venv: apt-get install python{python}-venv",
            code="toolchain-python",
        )
    _run([found, "-m", "venv", str(place)], variables_of_the_ordinary_index(), lock)
    install = [
        *(str(place / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"),
        "--no-cache-dir",
    ]

    def call(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        _run([*install, *arguments], environment, lock)

    yield call


def variables_of_the_ordinary_index() -> dict[str, str]:
    """What a pip gets that asks the index that this process's pip is configured with."""
    of_pip = [name for name in os.environ if name.startswith("PIP_")]
    return {**_variables(_INHERITED), **_variables((*_OF_THE_ORDINARY_INDEX, *of_pip))}


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
