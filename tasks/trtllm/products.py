"""GPUs by product, named as nvidia-smi prints them: their architecture and their memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Product:
    """`memory_mib` is `memory.total` as nvidia-smi prints it, with ECC on where the product has it."""

    architecture: str
    memory_mib: int


PRODUCTS = {
    "NVIDIA A10": Product("sm86", 23028),
    "NVIDIA A10G": Product("sm86", 23028),
    "NVIDIA A30": Product("sm80", 24576),
    "NVIDIA A40": Product("sm86", 46068),
    "NVIDIA A100-PCIE-40GB": Product("sm80", 40960),
    "NVIDIA A100-SXM4-40GB": Product("sm80", 40960),
    "NVIDIA A100 80GB PCIe": Product("sm80", 81920),
    "NVIDIA A100-SXM4-80GB": Product("sm80", 81920),
    "NVIDIA L4": Product("sm89", 23034),
    "NVIDIA L20": Product("sm89", 46068),
    "NVIDIA L40": Product("sm89", 46068),
    "NVIDIA L40S": Product("sm89", 46068),
    "NVIDIA H100 PCIe": Product("sm90", 81559),
    "NVIDIA H100 80GB HBM3": Product("sm90", 81559),
    "NVIDIA H100 NVL": Product("sm90", 95830),
    "NVIDIA H200": Product("sm90", 143771),
    "NVIDIA H200 NVL": Product("sm90", 143771),
    "NVIDIA GH200 480GB": Product("sm90", 97871),
    "NVIDIA B200": Product("sm100", 183359),
    "NVIDIA GB200": Product("sm100", 189471),
    "NVIDIA B300 SXM6 AC": Product("sm103", 275040),
    "NVIDIA GeForce RTX 3090": Product("sm86", 24576),
    "NVIDIA GeForce RTX 4090": Product("sm89", 24564),
    "NVIDIA GeForce RTX 5090": Product("sm120", 32607),
    "NVIDIA RTX A6000": Product("sm86", 46068),
    "NVIDIA RTX 6000 Ada Generation": Product("sm89", 46068),
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": Product("sm120", 97887),
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": Product("sm120", 97887),
}
"""Architectures are the compute capabilities of NVIDIA's list of CUDA GPUs."""


def gpu_memory_bytes(gpu: str) -> int | None:
    """The memory of one GPU of a product. Returns None for an unknown product."""
    found = PRODUCTS.get(gpu)
    return None if found is None else found.memory_mib * 2**20


def architecture_of(gpu: str) -> str:
    """The architecture of a product, such as sm90; empty for an unknown product."""
    found = PRODUCTS.get(gpu)
    return "" if found is None else found.architecture


def alike(gpu: str) -> tuple[str, ...]:
    """The known names that have every word of a name that somebody else gave: H100 is a word of three."""
    words = gpu.lower().removeprefix("nvidia").split()
    return tuple(name for name in PRODUCTS if words and all(word in name.lower() for word in words))


def meant(gpu: str) -> str:
    """What to write into a model's file in place of a product that is not known, for a hint."""
    names = ", ".join(alike(gpu)) or "NVIDIA H200, NVIDIA L40S and others"
    return f"give recipe.runtime.gpu as nvidia-smi says it ({names}), or recipe.runtime.gpu_memory_bytes"
