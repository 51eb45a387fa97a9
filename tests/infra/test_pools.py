"""Manifests and job templates, against the schemas of Kubernetes and without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import kubernetes_validate  # pyright: ignore[reportMissingTypeStubs]
import pytest
import yaml
from prefect.utilities.templating import apply_values

from infra.errors import SettingsError
from infra.pools.templates import job_template, job_variables, worker_image
from infra.settings import CHECKOUT

FOLDER = CHECKOUT / "infra/kubernetes"
# The newest release, and the oldest that people are likely to run.
VERSIONS = (kubernetes_validate.latest_version(), "1.25")
IMAGE = "registry.example/enginehouse:{tensorrt_llm}"


def manifests() -> list[tuple[Path, dict[str, Any]]]:
    names: list[str] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    return [(FOLDER / name, document) for name in names for document in yaml.safe_load_all((FOLDER / name).read_text())]


def rendered(template: dict[str, Any], **variables: object) -> dict[str, Any]:
    """The job configuration of a run, as Prefect's workers make it of the template."""
    properties: dict[str, dict[str, Any]] = template["variables"]["properties"]
    defaults = {name: field["default"] for name, field in properties.items() if "default" in field}
    return cast("dict[str, Any]", apply_values(template["job_configuration"], {**defaults, **variables}))


def job_of(template: dict[str, Any], **variables: object) -> dict[str, Any]:
    manifest = rendered(template, **variables)["job_manifest"]
    # What Prefect's worker does to it in the end, and what it insists on although no Pod has it.
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    container["args"] = container["args"].split()
    assert manifest["spec"]["template"]["spec"].pop("parallelism") == 1
    assert manifest["spec"]["template"]["spec"].pop("completions") == 1
    return manifest


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_and_jobs_are_valid(version: str) -> None:
    for path, document in manifests():
        kubernetes_validate.validate(document, version, strict=True)
        assert document["metadata"].get("namespace", "enginehouse") == "enginehouse", path
    for pool in ("build-sm90", "build-cpu"):
        job = job_of(job_template("kubernetes", pool, IMAGE, {}), image="some")
        kubernetes_validate.validate(job, version, strict=True)


def test_every_file_is_in_the_kustomization() -> None:
    assert {path for path, _ in manifests()} == set(FOLDER.glob("*.yaml")) - {FOLDER / "kustomization.yaml"}


def pod_specs() -> list[dict[str, Any]]:
    jobs = [job_of(job_template("kubernetes", pool, IMAGE, {}), image="some") for pool in ("build-sm90", "build-cpu")]
    owners = [document for _, document in manifests() if "template" in document.get("spec", {})]
    return [owner["spec"]["template"]["spec"] for owner in (*owners, *jobs)]


def test_every_pod_meets_the_restricted_standard_and_reads_its_root_only() -> None:
    specs = pod_specs()
    assert len(specs) == 6
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
        # The volume types of the standard; a path of the host is none.
        for volume in spec["volumes"]:
            assert volume.keys() <= {"name", "emptyDir", "persistentVolumeClaim", "secret"}
        # A token of the cluster is only where one is used.
        assert spec.get("automountServiceAccountToken", True) is (spec["serviceAccountName"] == "enginehouse-worker")


def test_a_build_gets_what_its_recipe_needs() -> None:
    template = job_template("kubernetes", "build-sm100", IMAGE, {})
    digest = f"sha256:{'cd' * 32}"
    asked = job_variables(template, image=f"mine@{digest}", gpus=4, product="NVIDIA H100 80GB HBM3")
    assert rendered(template, **asked)["env"]["ENGINEHOUSE_CONTAINER_DIGEST"] == digest
    spec = job_of(template, **asked)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["image"] == f"mine@{digest}"
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 4}
    assert spec["nodeSelector"] == {
        "nvidia.com/gpu.compute.major": "10",
        "nvidia.com/gpu.compute.minor": "0",
        "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    }
    # Labels that are not NVIDIA's know nothing of products.
    own = {"variables": {"properties": {"node_selector": {"default": {"pool": "big"}}}}}
    assert job_variables(cast(Any, own), image="", gpus=1, product="NVIDIA H200")["node_selector"] == {"pool": "big"}


def test_a_pool_without_gpus_asks_for_none() -> None:
    job = job_of(job_template("kubernetes", "build-cpu", IMAGE, {}))
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["image"] == "registry.example/enginehouse:cpu"
    assert container["resources"]["limits"] == {"memory": "8Gi"}
    assert spec["nodeSelector"] == {} and spec["tolerations"] == []


def test_a_docker_run_is_as_confined() -> None:
    store = {"ENGINEHOUSE_STORE": "s3://here"}
    template = job_template("docker", "build-sm90", IMAGE, store)
    asked = job_variables(template, image=worker_image(IMAGE, "1.2.1"), gpus=2, product="NVIDIA H200")
    assert asked == {"image": "registry.example/enginehouse:1.2.1", "image_digest": "", "gpu_count": 2}
    configuration = rendered(template, **asked)
    kwargs = configuration["container_create_kwargs"]
    assert kwargs["device_requests"] == [{"driver": "nvidia", "count": 2, "capabilities": [["gpu"]]}]
    assert kwargs["read_only"] and kwargs["cap_drop"] == ["ALL"] and kwargs["user"] == "10001:10001"
    assert kwargs["security_opt"] == ["no-new-privileges"] and kwargs["shm_size"] == "16g"
    assert configuration["env"].items() >= store.items() and configuration["mem_limit"] == "64g"
    cpu = rendered(job_template("docker", "build-cpu", IMAGE, store))
    assert "device_requests" not in cpu["container_create_kwargs"] and cpu["mem_limit"] == "8g"


def test_a_process_pool_is_asked_nothing_and_a_container_needs_an_image() -> None:
    assert job_variables({}, image="some", gpus=8, product="NVIDIA H200") == {}
    with pytest.raises(SettingsError) as caught:
        job_template("kubernetes", "build-sm90", "", {})
    assert "ENGINEHOUSE_WORKER_IMAGE" in caught.value.hint
