"""`enginehouse probe`: what this worker's toolchain really holds, kept in the store for those who plan elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from infra.toolchains.toolchain import ToolchainReport


def report_lines(report: ToolchainReport) -> Iterator[str]:
    """The report for people."""
    for name, version in report.by_name.items():
        yield f"{name:14} {version or 'not installed'}"
    yield f"{'image':14} {report.container_digest or 'of no known digest'}"
    yield f"{'free memory':14} {report.free_host_bytes / 2**30:.1f} GiB"
    yield f"{'driver':14} {report.gpus.driver or 'none'}"
    for gpu in report.gpus.gpus:
        memory = f"{gpu.free_bytes / 2**30:.1f} of {gpu.memory_bytes / 2**30:.1f} GiB free"
        yield f"{f'GPU {gpu.index}':14} {gpu.product} ({gpu.architecture}), {memory}"
    if report.gpus.problem:
        yield f"{'no GPU':14} {report.gpus.problem}"
