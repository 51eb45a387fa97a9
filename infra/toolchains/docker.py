"""A toolchain in a container image, given by digest and already on this machine."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from infra.errors import SettingsError
from infra.toolchains.finding import GPU_PROBE, PROBE, Finding, find
from infra.toolchains.surroundings import fixed, inherited
from infra.toolchains.toolchain import PreparedCommand, ToolchainReport, is_pinned_image, under_mpi

# NCCL and the workers of a build pass tensors in /dev/shm, which Docker limits to 64 MB by default. 16 GB is a bound,
# and reserves nothing. NVIDIA's images ask for the other two in their banner.
_LIMITS = ("--shm-size=16g", "--ulimit=memlock=-1", "--ulimit=stack=67108864")

# What the container gets of this process's environment; the rest, PATH first of all, is the image's own.
_PASSED_ON = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "LANG", "LC_ALL", "TZ")
# What the program `docker` itself needs to reach its server.
_FOR_DOCKER = ("PATH", "DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "XDG_RUNTIME_DIR")

_PYTHON = "python3"
_DOCKER_TIMEOUT_S = 60


@dataclass(frozen=True)
class DockerToolchain:
    """`image` is `NAME@sha256:…`. `examples` is a folder of this machine that is searched before the image's own."""

    image: str
    examples: Path | None = None

    def __post_init__(self) -> None:
        if not is_pinned_image(self.image):
            raise SettingsError(
                f"the toolchain's image {self.image!r} is not named by digest",
                hint="name it as IMAGE@sha256:…, as `docker image inspect --format '{{.RepoDigests}}' IMAGE` prints it",
                code="image-unpinned",
            )

    def report(self) -> ToolchainReport:
        return self._finding.report(self.image.partition("@")[2])

    def command(
        self,
        tool: str,
        arguments: Sequence[str],
        *,
        inputs: Sequence[Path],
        outputs: Sequence[Path],
        folder: Path,
        ranks: int = 1,
    ) -> PreparedCommand:
        argv = under_mpi([*self._finding.tool(tool, _PYTHON), *arguments], ranks)
        own = [Path(tool)] if tool.startswith("/") else []
        return self._run(argv, inputs=[*inputs, *own], outputs=[folder, *outputs], folder=folder)

    @cached_property
    def _finding(self) -> Finding:
        self._inspect()
        examples = [str(self.examples)] if self.examples is not None else []
        command = self._run(
            [_PYTHON, str(PROBE), *examples], inputs=[PROBE, GPU_PROBE], outputs=[], folder=Path("/tmp")
        )
        try:
            return find(command.argv, command.environment, f"the image {self.image}")
        except SettingsError:
            # At the time limit the program docker was ended, and its container may run on.
            _docker(["kill", command.container])
            raise

    def _run(
        self, argv: Sequence[str], *, inputs: Sequence[Path], outputs: Sequence[Path], folder: Path
    ) -> PreparedCommand:
        name = f"enginehouse-{secrets.token_hex(8)}"
        read_only = [*inputs, *([self.examples] if self.examples is not None else [])]
        environment = {**inherited(*_PASSED_ON), **fixed(folder)}
        return PreparedCommand(
            argv=(
                *("docker", "run", "--rm", "--init", "--pull=never", f"--name={name}"),
                *("--gpus=all", "--network=none", f"--user={os.getuid()}:{os.getgid()}", f"--workdir={folder}"),
                *_LIMITS,
                *_mounts(read_only, outputs),
                *(f"--env={key}={value}" for key, value in environment.items()),
                self.image,
                *argv,
            ),
            environment=inherited(*_FOR_DOCKER),
            container=name,
        )

    def _inspect(self) -> None:
        """Raises SettingsError if this machine does not have the image, or has another digest for it."""
        ran = _docker(["image", "inspect", "--format", "{{json .RepoDigests}}", self.image])
        if ran.returncode != 0:
            raise SettingsError(
                f"docker cannot show the image {self.image}: {ran.stderr.strip()}",
                hint=f"fetch it first: docker pull {self.image}",
                code="toolchain-missing",
            )
        digest = self.image.partition("@")[2]
        known: list[str] = json.loads(ran.stdout) or []
        if digest not in {name.partition("@")[2] for name in known}:
            raise SettingsError(f"docker knows {self.image} by other digests: {ran.stdout}", code="toolchain-broken")


def _docker(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run docker for a short command. Raises SettingsError if the program is missing or does not end in time."""
    try:
        return subprocess.run(
            ["docker", *arguments],
            env=dict(inherited(*_FOR_DOCKER)),
            capture_output=True,
            text=True,
            check=False,
            timeout=_DOCKER_TIMEOUT_S,
        )
    except FileNotFoundError:
        raise SettingsError(
            "the toolchain is an image, but this machine has no program docker",
            hint="install Docker, or set ENGINEHOUSE_TOOLCHAIN to another kind",
            code="toolchain-missing",
        ) from None
    except subprocess.TimeoutExpired as error:
        raise SettingsError(f"docker does not answer: {error}", code="toolchain-broken") from None


def _mounts(inputs: Sequence[Path], outputs: Sequence[Path]) -> list[str]:
    """Mounts of each path at the same path, once. --mount fails if a source is missing; -v would make a folder."""
    writable = dict.fromkeys(outputs)
    read_only = [path for path in dict.fromkeys(inputs) if path not in writable]
    return [
        *(f"--mount=type=bind,source={path},target={path}" for path in writable),
        *(f"--mount=type=bind,source={path},target={path},readonly" for path in read_only),
    ]
