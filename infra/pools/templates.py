"""The base job templates of Docker and Kubernetes pools, and the job variables of one run. Imports no Prefect.

A process pool has Prefect's own template: its runs are children of the worker, and have what the worker has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import JsonValue

from infra.errors import SettingsError

_HERE = Path(__file__).parent
_VERSION = "{tensorrt_llm}"
_WITHOUT_GPU = "cpu"
# Labels that NVIDIA's GPU feature discovery gives to nodes.
_GPU_LABELS = "nvidia.com/gpu."


def worker_image(pattern: str, version: str = "") -> str:
    """The image of a run. `{tensorrt_llm}` stands for the version, and for `cpu` without one."""
    return pattern.replace(_VERSION, version or _WITHOUT_GPU)


def job_template(
    type: Literal["docker", "kubernetes"], pool: str, image: str, environment: Mapping[str, str]
) -> dict[str, JsonValue]:
    """The base job template of a new pool. `environment` holds the address of the store for Docker's containers; Pods
    have a ConfigMap for that.

    A pool `build-smNN` gives each run GPUs of that architecture; any other gives none. Raises SettingsError without
    an image, the setting ENGINEHOUSE_WORKER_IMAGE.
    """
    if not image:
        raise SettingsError(
            f"runs of the work pool {pool} are containers, and their image is not set",
            hint="ENGINEHOUSE_WORKER_IMAGE is its name; {tensorrt_llm} in it stands for the version",
        )
    template = cast("dict[str, Any]", yaml.safe_load((_HERE / f"{type}.yaml").read_text("utf-8")))
    properties = template["variables"]["properties"]
    compute_capability = re.fullmatch(r"build-sm(\d+)(\d)", pool)
    if compute_capability is None:
        _without_gpu(template)
    if compute_capability is None or _VERSION not in image:
        properties["image"]["default"] = worker_image(image)
    if type == "docker":
        template["job_configuration"]["env"] |= environment
        return template
    properties["cache_claim"]["default"] = f"enginehouse-{pool}"
    if compute_capability is not None:
        major, minor = compute_capability.groups()
        properties["node_selector"]["default"] = {
            f"{_GPU_LABELS}compute.major": major,
            f"{_GPU_LABELS}compute.minor": minor,
        }
    return template


def job_variables(template: Mapping[str, JsonValue], *, image: str, gpus: int, product: str) -> dict[str, JsonValue]:
    """The job variables of one run, without those that the pool's template does not have.

    `product` is the GPU's name as nvidia-smi prints it, or empty if any GPU of the architecture will do. It becomes a
    label only if the pool selects nodes by NVIDIA's labels.
    """
    properties: dict[str, Any] = cast(Any, template).get("variables", {}).get("properties", {})
    selector: dict[str, JsonValue] = properties.get("node_selector", {}).get("default") or {}
    if product and any(label.startswith(_GPU_LABELS) for label in selector):
        selector = {**selector, f"{_GPU_LABELS}product": re.sub(r"[^A-Za-z0-9_.-]+", "-", product)}
    asked: dict[str, JsonValue] = {"node_selector": selector}
    if image:
        asked |= {"image": image, "image_digest": image.partition("@")[2]}
    if gpus:
        asked["gpu_count"] = gpus
    return {name: value for name, value in asked.items() if name in properties}


def _without_gpu(template: dict[str, Any]) -> None:
    properties, configuration = template["variables"]["properties"], template["job_configuration"]
    del properties["gpu_count"]
    if "container_create_kwargs" in configuration:
        for name in ("device_requests", "ulimits"):  # pinned memory is for GPUs
            del configuration["container_create_kwargs"][name]
        _set_defaults(properties, memory="8g", shared_memory="1g")
        return
    _set_defaults(properties, cpu="2", memory="8Gi", shared_memory="1Gi", tolerations=[])
    (container,) = configuration["job_manifest"]["spec"]["template"]["spec"]["containers"]
    del container["resources"]["limits"]["nvidia.com/gpu"]


def _set_defaults(properties: dict[str, Any], **defaults: object) -> None:
    for name, value in defaults.items():
        properties[name]["default"] = value
