"""Whether a node is what an engine was built for, and has what it takes to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from packaging.version import InvalidVersion, Version

from tasks.targets.node_report import Machine


def differences(built: Mapping[str, str], machine: Machine, gpus: Sequence[int], *, portable: bool) -> list[str]:
    """What keeps an engine from running on a node; empty where it fits.

    `built` is the runtime of a manifest's producer (`tasks.trtllm.tool.described`); what it does not tell is not
    compared. `gpus` are those of the node that the engine takes. A `portable` engine runs on any product.
    """
    return [
        *_tensorrt_llm(built.get("tensorrt_llm", ""), machine.tensorrt_llm),
        *_tensorrt(built.get("tensorrt", ""), machine.tensorrt),
        *_gpus(built.get("architecture", ""), "" if portable else built.get("gpu", ""), machine, gpus),
    ]


def _tensorrt_llm(built: str, found: str) -> list[str]:
    if not built or (found and _same(built, found)):
        return []
    return [f"it has {f'TensorRT-LLM {found}' if found else 'no TensorRT-LLM that it knows of'}, and {built} is needed"]


def _same(built: str, found: str) -> bool:
    # Post-releases are other versions: 0.17.0.post1 does not serve for 0.17.0.
    try:
        return Version(built) == Version(found)
    except InvalidVersion:
        return built == found


def _tensorrt(built: str, found: str) -> list[str]:
    """Packages and tables name more or fewer parts of the same version: 10.8.0 and 10.8.0.43."""
    if not built:
        return []
    if found:
        wanted, present = Version(built).release, Version(found).release
        known = min(len(wanted), len(present))
        if wanted[:known] == present[:known]:
            return []
    return [f"it has {f'TensorRT {found}' if found else 'no TensorRT that it knows of'}, and {built} is needed"]


def _gpus(architecture: str, product: str, machine: Machine, wanted: Sequence[int]) -> list[str]:
    if not machine.gpus:
        return [f"it has no GPU: {machine.gpu_problem or 'it reports none'}"]
    if max(wanted) >= len(machine.gpus):
        return [f"its last GPU is number {len(machine.gpus) - 1}, and the engine takes number {max(wanted)}"]
    taken = [machine.gpus[place] for place in wanted]
    found = sorted({gpu.architecture for gpu in taken} - {architecture})
    if architecture and found:
        return [f"its GPUs are {', '.join(found)}, and {architecture} is needed"]
    found = sorted({gpu.product for gpu in taken} - {product})
    if product and found:
        return [f"its GPUs are {', '.join(found)}, and {product} is needed"]
    return []
