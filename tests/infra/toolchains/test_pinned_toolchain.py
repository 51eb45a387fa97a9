from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest

from infra import settings
from infra.errors import SettingsError
from infra.toolchains import pinned
from infra.toolchains.choose import toolchain
from infra.toolchains.interpreter import InterpreterToolchain

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

# Builds itself without any other package, and keeps the environment of the build.
BACKEND = """
import json, os, zipfile
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(os.path.join(wheel_directory, "acme_source-1.0-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("acme_source.json", json.dumps(dict(os.environ)))
        information = "acme_source-1.0.dist-info/"
        wheel.writestr(information + "METADATA", "Metadata-Version: 2.1\\nName: acme-source\\nVersion: 1.0\\n")
        wheel.writestr(information + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(information + "RECORD", "")
    return "acme_source-1.0-py3-none-any.whl"
"""


def wheel(
    name: str,
    text: str,
    *,
    version: str = "1.0",
    requires: str = "acme-unlisted",
    files: Mapping[str, str] = MappingProxyType({}),
) -> tuple[str, bytes]:
    """A wheel with one module. By default it needs what no index has, and nobody may ask for."""
    module = name.replace("-", "_")
    stem = f"{module}-{version}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{module}/__init__.py" if files else f"{module}.py", text)
        for path, content in files.items():
            archive.writestr(path, content)
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return f"{stem}-py3-none-any.whl", buffer.getvalue()


def _source() -> tuple[str, bytes]:
    project = '[build-system]\nrequires = ["acme-builder"]\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    files = {
        "pyproject.toml": project + '[project]\nname = "acme-source"\nversion = "1.0"\n',
        "backend.py": BACKEND,
        "PKG-INFO": "Metadata-Version: 2.1\nName: acme-source\nVersion: 1.0\n",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"acme_source-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return "acme_source-1.0.tar.gz", buffer.getvalue()


@dataclass
class Index:
    """A package index on loopback. `gate` holds back every file until it is set."""

    files: dict[str, bytes]
    url: str = ""
    asked: list[str] = field(default_factory=list[str])
    gate: threading.Event = field(default_factory=threading.Event)

    @property
    def projects(self) -> set[str]:
        """The names of the projects that were asked for."""
        return {path.split("/")[2] for path in self.asked if path.startswith("/simple/")}

    def answer(self, path: str) -> bytes | None:
        self.asked.append(path)
        _, place, name, *_ = path.split("/")
        if place == "files":
            self.gate.wait(30)
            return self.files.get(name)
        ours = [file for file in self.files if file.startswith(f"{name.replace('-', '_')}-")]
        return "".join(f'<a href="/files/{file}">{file}</a>' for file in ours).encode() if ours else None


@contextmanager
def serving(*files: tuple[str, bytes]) -> Generator[Index]:
    index = Index(dict(files))
    index.gate.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = index.answer(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    index.url = f"http://127.0.0.1:{server.server_port}/simple/"
    try:
        yield index
    finally:
        index.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def indexes(monkeypatch: pytest.MonkeyPatch) -> Generator[tuple[Index, Index]]:
    """The ordinary index, which pip is configured with, and the second. Each has a package of the other's too."""
    with ExitStack() as stack:
        ordinary = stack.enter_context(
            serving(wheel("acme-common", "FROM = 'ordinary'"), wheel("acme-engine", "FROM = 'ordinary'"))
        )
        second = stack.enter_context(
            serving(wheel("acme-engine", "FROM = 'second'"), _source(), wheel("acme-common", "FROM = 'second'"))
        )
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", ordinary.url)
        # The interpreter that this environment was made from: a venv's own python makes environments of no name.
        base = Path(os.path.realpath(sys.executable)).parent
        monkeypatch.setenv("PATH", f"{base}{os.pathsep}{os.environ['PATH']}")
        yield ordinary, second


def _pins(folder: Path, ordinary: Index, second: Index, *, spoilt: str = "") -> Path:
    def line(index: Index, file: str) -> str:
        digest = hashlib.sha256(index.files[file] + (b"spoilt" if spoilt == file else b"")).hexdigest()
        return f"{file.split('-')[0].replace('_', '-')}==1.0 --hash=sha256:{digest}"

    folder.mkdir(exist_ok=True)
    lines = [
        f"# python: {PYTHON}",
        line(ordinary, "acme_common-1.0-py3-none-any.whl"),
        pinned.SECOND_INDEX,
        line(second, "acme_engine-1.0-py3-none-any.whl"),
        line(second, "acme_source-1.0.tar.gz"),
    ]
    (folder / "1.0.0.txt").write_text("\n".join(lines) + "\n")
    return folder


def _packages(place: Path) -> Path:
    (packages,) = place.glob("lib/python3.*/site-packages")
    return packages


def test_each_package_comes_from_its_index_alone_and_two_makers_make_it_once(
    tmp_path: Path, indexes: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary, second = indexes
    # Whatever else pip is configured with must not reach the second call.
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", ordinary.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    pins = _pins(tmp_path / "pins", ordinary, second)
    with ThreadPoolExecutor() as makers:
        made = [makers.submit(pinned.environment, tmp_path / "home", "1.0.0", second.url, pins) for _ in range(2)]
        places = {maker.result() for maker in made}
    (place,) = places
    assert place == tmp_path / "home/1.0.0"
    assert ordinary.projects == {"acme-common"}
    assert second.projects == {"acme-engine", "acme-source"}
    assert sorted(path for path in second.asked if "/files/" in path) == [
        "/files/acme_engine-1.0-py3-none-any.whl",
        "/files/acme_source-1.0.tar.gz",
    ]
    packages = _packages(place)
    assert (packages / "acme_common.py").read_text() == "FROM = 'ordinary'"
    assert (packages / "acme_engine.py").read_text() == "FROM = 'second'"
    build = json.loads((packages / "acme_source.json").read_text())
    assert build["NVIDIA_TENSORRT_DISABLE_INTERNAL_PIP"] == "1"
    assert "HF_TOKEN" not in build

    # Other pins make another environment.
    (pins / "1.0.0.txt").write_text((pins / "1.0.0.txt").read_text() + "# changed\n")
    (packages / "stale.py").touch()
    pinned.environment(tmp_path / "home", "1.0.0", second.url, pins)
    assert not (_packages(place) / "stale.py").exists()


@pytest.mark.parametrize("file", ["acme_common-1.0-py3-none-any.whl", "acme_engine-1.0-py3-none-any.whl"])
def test_a_file_of_another_hash_is_refused_and_nothing_is_left_to_use(
    tmp_path: Path, indexes: tuple[Index, Index], file: str
) -> None:
    ordinary, second = indexes
    pins = _pins(tmp_path / "pins", ordinary, second, spoilt=file)
    second.url = second.url.replace("127.0.0.1", "user:password@127.0.0.1")
    with pytest.raises(SettingsError) as caught:
        pinned.environment(tmp_path, "1.0.0", second.url, pins)
    assert caught.value.code == "toolchain-install"
    assert "DO NOT MATCH THE HASHES" in caught.value.message and "password" not in caught.value.message
    assert not (tmp_path / "1.0.0/complete").exists()


def test_a_killed_making_is_remade_after_its_pip_has_ended(tmp_path: Path, indexes: tuple[Index, Index]) -> None:
    ordinary, second = indexes
    pins = _pins(tmp_path / "pins", ordinary, second)
    second.gate.clear()
    program = (
        "import sys; from pathlib import Path; from infra.toolchains import pinned\n"
        "pinned.environment(Path(sys.argv[1]), '1.0.0', sys.argv[2], Path(sys.argv[3]))"
    )
    maker = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), second.url, str(pins)], cwd=settings.CHECKOUT
    )
    while not any("/files/" in path for path in second.asked):
        assert maker.poll() is None
        time.sleep(0.02)
    os.kill(maker.pid, signal.SIGKILL)
    maker.wait(5)
    left = _packages(tmp_path / "1.0.0") / "acme_common.py"
    left.write_text("half-made")
    with (tmp_path / "1.0.0.lock").open() as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        second.gate.set()
        place = pinned.environment(tmp_path, "1.0.0", second.url, pins)
    assert (place / "complete").is_file()
    assert left.read_text() == "FROM = 'ordinary'"
    assert (_packages(place) / "acme_source.json").is_file()


def test_the_setting_venv_makes_the_environment_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", "venv")
    monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path))
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN_INDEX", "http://127.0.0.1:9/simple/")
    asked: list[tuple[Path, str, str]] = []

    def environment(folder: Path, version: str, second_index: str) -> Path:
        asked.append((folder, version, second_index))
        return folder / version

    monkeypatch.setattr(pinned, "environment", environment)
    assert toolchain(settings.load(), "0.8.0") == InterpreterToolchain(tmp_path / "toolchains/0.8.0/bin/python")
    assert asked == [(tmp_path / "toolchains", "0.8.0", "http://127.0.0.1:9/simple/")]


def test_what_lacks_for_an_environment_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = tmp_path / "pins"
    pins.mkdir()

    def code() -> tuple[str, str]:
        with pytest.raises(SettingsError) as caught:
            pinned.environment(tmp_path / "home", "9.9.0", "", pins)
        return caught.value.code, caught.value.message

    refused, message = code()
    assert refused == "toolchain-unpinned" and str(pins / "9.9.0.txt") in message
    (pins / "9.9.0.txt").write_text("acme==1.0 --hash=sha256:00\n")
    assert code()[0] == "toolchain-unpinned"
    (pins / "9.9.0.txt").write_text(f"# python: 3.10\n{pinned.SECOND_INDEX}\nacme==1.0 --hash=sha256:00\n")
    assert code()[0] == "toolchain-index"
    (pins / "9.9.0.txt").write_text("# python: 3.10\nacme==1.0 --hash=sha256:00\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code()[0] == "toolchain-python"


def test_the_pins_of_the_project_are_whole() -> None:
    files = sorted(pinned.PIN_FILES.glob("*.txt"))
    assert files
    for path in files:
        pins = pinned.read(path, path.stem)
        parts = [
            [line for line in text.splitlines() if line and not line.startswith("#")]
            for text in (pins.ordinary, pins.second)
        ]
        names = [line.partition("==")[0] for part in parts for line in part]
        assert len(set(names)) == len(names)
        assert all(line.count(" --hash=sha256:") == 1 for part in parts for line in part)
        assert f"tensorrt-llm=={path.stem} " in pins.second
        # What is built from source in the second part is built with these.
        assert {"setuptools", "wheel"} <= set(names[: len(parts[0])])
