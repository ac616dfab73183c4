"""Both manifests against KubeRay's own schema, their images' Dockerfile, and what neither of them would tell.

The schema is a cluster's: INTENTREC_SHARED/kuberay/ray.io_rayjobs.yaml, by default in ../shared.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from cluster.config import Config
from ingest.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("INTENTREC_SHARED", ROOT.parent / "shared"))
BOUNDS = {"int32": 2**31, "int64": 2**63}
SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD", "ENTRYPOINT", "LABEL", "ARG", "EXPOSE"}
MANIFESTS = ("ray_job.yaml", "ray_job_cpu.yaml")
PACKAGES = ("ingest", "embeddings", "trainer", "evaluation", "cluster")


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as Kubernetes reads it: a date is a string."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def json_schema(node: Any) -> Any:
    """OpenAPI v3 as Kubernetes means it -> JSON Schema: closed to unknown keys, null unions, integer bounds."""
    if isinstance(node, list):
        return [json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    schema: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            schema[key] = {name: json_schema(child) for name, child in value.items()}
        elif not key.startswith("x-kubernetes-") and key not in ("nullable", "format", "description"):
            schema[key] = json_schema(value)
    if node.get("x-kubernetes-int-or-string"):
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if node.get("format") in BOUNDS:
        bound = BOUNDS[node["format"]]
        schema = {"minimum": -bound, "maximum": bound - 1} | schema
    if "properties" in schema and not node.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return {"anyOf": [schema, {"type": "null"}]} if node.get("nullable") else schema


def completed(value: Any, schema: Any) -> Any:
    """`value` as the API server stores it before it validates: nulls pruned, the schema's defaults filled in."""
    if isinstance(value, list):
        return [completed(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    properties, other = schema.get("properties", {}), schema.get("additionalProperties") or {}
    other = other if isinstance(other, dict) else {}
    kept = {key: completed(item, properties.get(key, other)) for key, item in value.items() if item is not None}
    return {key: child["default"] for key, child in properties.items() if "default" in child} | kept


@pytest.fixture(scope="session")
def crd() -> dict[str, Any]:
    path = SHARED / "kuberay" / "ray.io_rayjobs.yaml"
    if not path.exists():
        pytest.skip(f"KubeRay's schema is not there: {path} (INTENTREC_SHARED names the folder)")
    definition = yaml.load(path.read_text(), Loader)
    [version] = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    return dict(version["schema"]["openAPIV3Schema"])


@pytest.fixture(scope="session")
def validator(crd: dict[str, Any]) -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(json_schema(crd))


@pytest.fixture(params=MANIFESTS)
def manifest(request: pytest.FixtureRequest) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load((ROOT / request.param).read_text(), Loader)
    return loaded


def groups(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = manifest["spec"]["rayClusterSpec"]
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


def by_hand(manifest: dict[str, Any]) -> list[str]:
    """What KubeRay's operator refuses, or what would go wrong in silence, and its schema lets through."""
    spec, problems = manifest["spec"], []
    cluster = spec.get("rayClusterSpec")
    if spec.get("submissionMode", "K8sJobMode") not in SUBMISSION_MODES:
        problems.append("submissionMode")
    if not spec.get("entrypoint"):
        problems.append("entrypoint")
    problems += [key for key in ("backoffLimit", "ttlSecondsAfterFinished") if spec.get(key, 0) < 0]
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        problems.append("activeDeadlineSeconds")
    if not cluster:
        return [*problems, "rayClusterSpec"]
    for group in cluster.get("workerGroupSpecs", []):
        low, replicas, high = (group[key] for key in ("minReplicas", "replicas", "maxReplicas"))
        if not 0 <= low <= replicas <= high:
            problems.append("replicas")
    for group in groups(manifest):
        if any(not isinstance(value, str) for value in group["rayStartParams"].values()):
            problems.append("rayStartParams")
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        mounts = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        if mounts != volumes:
            problems.append("volumes")
    return problems


def errors(validator: jsonschema.Draft7Validator, crd: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    found = validator.iter_errors(completed(manifest, crd))
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def test_the_manifest_is_what_kuberay_takes(
    validator: jsonschema.Draft7Validator, crd: dict[str, Any], manifest: dict[str, Any]
) -> None:
    assert errors(validator, crd, manifest) == []


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("spec/shutdownAfterJobFinish", True, "shutdownAfterJobFinish"),
        ("spec/rayClusterSpec/headGroupSpec/template/spec/contaners", [], "contaners"),
        ("spec/rayClusterSpec/workerGroupSpecs/0/template/spec/containers/0/resorces", {}, "resorces"),
        ("spec/rayClusterSpec/workerGroupSpecs/0/replicas", "four", "'four'"),
        ("spec/rayClusterSpec/workerGroupSpecs/0/replicas", 2**31, "2147483648"),
        ("spec/rayClusterSpec/headGroupSpec/rayStartParams/num-gpus", 0, "0 is not of type 'string'"),
        ("spec/rayClusterSpec/headGroupSpec/template/spec/containers/0/envFrom", "intentrec-s3", "intentrec-s3"),
        ("spec/rayClusterSpec/headGroupSpec/template", None, "'template' is a required property"),
    ],
)
def test_a_broken_manifest_is_refused_by_the_schema(
    validator: jsonschema.Draft7Validator,
    crd: dict[str, Any],
    manifest: dict[str, Any],
    path: str,
    value: Any,
    complaint: str,
) -> None:
    put(manifest, path, value)
    assert any(complaint in error for error in errors(validator, crd, manifest))


def put(manifest: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    node: Any = manifest
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node[parent]
    node[last] = value


def test_what_the_schema_does_not_check_is_right(manifest: dict[str, Any]) -> None:
    assert by_hand(manifest) == []


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("spec/rayClusterSpec/workerGroupSpecs/0/replicas", -1, "replicas"),
        ("spec/rayClusterSpec/workerGroupSpecs/0/maxReplicas", 1, "replicas"),
        ("spec/rayClusterSpec", None, "rayClusterSpec"),
        ("spec/submissionMode", "K8SJobMode", "submissionMode"),
        ("spec/entrypoint", "", "entrypoint"),
        ("spec/backoffLimit", -1, "backoffLimit"),
        ("spec/activeDeadlineSeconds", 0, "activeDeadlineSeconds"),
        ("spec/rayClusterSpec/headGroupSpec/template/spec/volumes", [], "volumes"),
    ],
)
def test_a_broken_manifest_is_refused_by_hand(manifest: dict[str, Any], path: str, value: Any, problem: str) -> None:
    broken = copy.deepcopy(manifest)
    put(broken, path, value)
    assert problem in by_hand(broken)


def test_the_job_runs_a_command_of_ours_with_its_state_in_an_object_store(manifest: dict[str, Any]) -> None:
    command, verb, config, *overrides = shlex.split(manifest["spec"]["entrypoint"])
    assert (command, verb) == ("intentrec", "run")
    assert (ROOT / config).exists()
    assert any(re.fullmatch(r"storage=s3://[a-z0-9.-]+/\S+", override) for override in overrides)


def test_the_job_asks_for_the_workers_that_the_cluster_has(manifest: dict[str, Any]) -> None:
    _, _, config, *overrides = shlex.split(manifest["spec"]["entrypoint"])
    cluster = load_settings(Config, str(ROOT / config), overrides).cluster
    [group] = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert cluster.workers.max == group["replicas"]
    assert cluster.cpus_per_worker == float(limits["cpu"])
    assert cluster.gpus is ("nvidia.com/gpu" in limits)


def test_the_job_ends_and_frees_its_machines(manifest: dict[str, Any]) -> None:
    spec = manifest["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] >= 0
    assert spec["activeDeadlineSeconds"] > spec["ttlSecondsAfterFinished"]
    assert spec["backoffLimit"] >= 1


def test_only_workers_have_gpus_and_all_have_shared_memory_and_credentials(manifest: dict[str, Any]) -> None:
    head, *workers = groups(manifest)
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["rayStartParams"].get("num-gpus", "0") == "0"
    assert workers
    for group in (head, *workers):
        [container] = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        assert limits.get("nvidia.com/gpu") == (None if group is head else group["rayStartParams"].get("num-gpus"))
        assert container["envFrom"] == [{"secretRef": {"name": "intentrec-s3"}}]
        [shm] = container["volumeMounts"]
        assert shm["mountPath"] == "/dev/shm"
        [volume] = group["template"]["spec"]["volumes"]
        assert volume["emptyDir"]["medium"] == "Memory"
        assert gibibytes(volume["emptyDir"]["sizeLimit"]) <= gibibytes(limits["memory"]) / 2


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


def test_no_credential_is_written_down() -> None:
    text = "".join((ROOT / name).read_text() for name in (*MANIFESTS, "Dockerfile"))
    assert not re.search(r"(?i)(secret|access)_?(access_)?key(_id)?\s*[:=]\s*[\"']?(?!\.\.\.)\w", text)


def test_versions_are_the_same_everywhere(manifest: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [image] = {group["template"]["spec"]["containers"][0]["image"] for group in groups(manifest)}
    gpus = "nvidia.com/gpu" in str(manifest)
    assert image == f"ghcr.io/intentrec/intentrec:{project['version']}{'' if gpus else '-cpu'}"
    build = f"docker build --tag {image}{'' if gpus else ' --build-arg ACCELERATOR=cpu'} ."
    assert build in (ROOT / "Dockerfile").read_text()
    [ray] = [each for each in project["dependencies"] if each.startswith("ray[")]
    assert ray.endswith(f"=={manifest['spec']['rayClusterSpec']['rayVersion']}")
    for constraints in (ROOT / "requirements").glob("*.txt"):
        pinned = re.findall(r"^ray==(\S+)", constraints.read_text(), re.MULTILINE)
        assert set(pinned) <= {manifest["spec"]["rayClusterSpec"]["rayVersion"]}, constraints.name


def test_the_file_for_ray_up_is_what_ray_takes() -> None:
    [block] = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "cluster.md").read_text(), re.MULTILINE | re.DOTALL)
    config = yaml.safe_load(block)
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    workers = sum(kind.get("min_workers", 0) for kind in config["available_node_types"].values())
    assert workers == config["max_workers"]


def dockerfile() -> list[tuple[str, str]]:
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = [line.strip() for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_dockerfile_has_valid_instructions_in_a_working_order() -> None:
    steps = dockerfile()
    assert {name for name, _ in steps} <= INSTRUCTIONS
    assert steps[0] == ("FROM", "python:3.11-slim-bookworm")
    users = [argument for name, argument in steps if name == "USER"]
    assert users == ["1000"]
    last_build_step = max(index for index, (name, _) in enumerate(steps) if name in ("RUN", "COPY"))
    assert [name for name, _ in steps].index("USER") > last_build_step


def copied() -> list[str]:
    return [source for name, argument in dockerfile() if name == "COPY" for source in argument.split()[:-1]]


def test_the_image_is_built_from_files_that_are_there() -> None:
    runs = " ".join(argument for name, argument in dockerfile() if name == "RUN")
    requirements = re.findall(r"requirements/\S+\.txt", runs)
    assert len(requirements) == 2
    chosen = [name.replace("$ACCELERATOR", build) for name in requirements for build in ("cuda", "cpu")]
    assert [name for name in (*copied(), *chosen) if not (ROOT / name).exists()] == []
    assert {f"{package}/" for package in PACKAGES} <= set(copied())


def test_the_build_context_is_what_the_dockerfile_copies() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied())
