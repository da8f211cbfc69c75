"""The Helm chart: values that fit their schema, and manifests that Kubernetes would take.

Rendering needs `helm-python-sdk` and checking manifests `kubernetes-validate` (`make check-deploy` installs
both); what can be said of values without them is said without them.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from jobs.settings import read_settings
from service.cli import app as command_line

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "optipfair"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
OURS = {"keda.sh/v1alpha1", "monitoring.coreos.com/v1"}
"""Kinds of others' operators, whose schemas are not Kubernetes'."""


def merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """As Helm merges: mappings field by field, anything else replaced."""
    found = dict(copy.deepcopy(values))
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = merged(found[name], value) if both else value
    return found


def example(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CHART / "examples" / f"{name}.yaml").read_text()))


def rendered(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The manifests of a release `prune` in the namespace `ml`."""
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed: make check-deploy")
    with helm.Chart.load(str(CHART)) as chart:
        for name, text in chart.render(dict(values), name="prune", namespace="ml").items():
            if name.endswith(".yaml"):
                yield from (part for part in yaml.safe_load_all(text) if part)


def named(values: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(part["kind"], part["metadata"]["name"]): part for part in rendered(values)}


def pods(manifests: Mapping[tuple[str, str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pod of each Deployment, Job and ScaledJob, by its name."""
    found = {}
    for (kind, name), manifest in manifests.items():
        spec = manifest["spec"].get("jobTargetRef", manifest["spec"]) if "spec" in manifest else {}
        if kind in ("Deployment", "Job", "ScaledJob"):
            found[name] = spec["template"]["spec"]
    return found


def environment(pod: Mapping[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in pod["containers"][0]["env"]}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_values_fit_the_schema(path: Path) -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(merged(DEFAULTS, yaml.safe_load(path.read_text())), SCHEMA)


def test_every_default_is_described() -> None:
    """A value without a word in the schema would be refused by it, too."""
    errors = jsonschema.Draft7Validator(SCHEMA).iter_errors(DEFAULTS)
    assert {".".join(map(str, error.absolute_path)) for error in errors} == {
        "publicUrl",
        "artifacts.url",
        "secret.name",
    }  # what nobody can guess


@pytest.mark.parametrize(
    ("over", "place"),
    [
        ({"replicas": 3}, ""),
        ({"workers": {"cpu": {"queue": ["cpu"]}}}, "workers.cpu"),
        ({"workers": {"cpu": {"device": "rocm"}}}, "workers.cpu.device"),
        ({"workers": {"more": {"enabled": True}}}, "workers.more"),
        ({"settings": {"database_url": "sqlite:///x"}}, "settings"),
        ({"secret": {"name": ""}}, "secret.name"),
        ({"image": {"api": {"digest": "latest"}}}, "image.api.digest"),
        ({"ingress": {"host": ""}}, "ingress.host"),
        ({"artifacts": {"url": "/srv/files"}}, "artifacts.url"),
    ],
)
def test_values_that_would_do_nothing_are_refused(over: dict[str, Any], place: str) -> None:
    values = merged(merged(DEFAULTS, example("minimal")), over)
    errors = list(jsonschema.Draft7Validator(SCHEMA).iter_errors(values))
    assert {".".join(map(str, error.absolute_path)) for error in errors} == {place}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_kubernetes_would_take_the_manifests(path: Path) -> None:
    validator = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed: make check-deploy"
    )
    for manifest in rendered(yaml.safe_load(path.read_text())):
        if manifest["apiVersion"] not in OURS:
            validator.validate(manifest, "1.34", strict=True)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_helm_finds_nothing_wrong(path: Path) -> None:
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed: make check-deploy")
    assert helm.lint(str(CHART), yaml.safe_load(path.read_text()))["errors"] == []


def test_pods_are_confined_and_get_their_secrets_as_files() -> None:
    manifests = named(example("production"))
    assert not [kind for kind, _ in manifests if kind == "Secret"]
    for name, pod in pods(manifests).items():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        given = {
            item["key"] for volume in pod["volumes"] for item in volume.get("secret", {}).get("items", ())
        }
        assert ("secret" in given) == name.endswith("-api"), f"{name}: only the API signs"
        named_files = {value for value in environment(pod).values() if value.startswith("/secrets/")}
        assert named_files == {f"/secrets/{key}" for key in given}
    allowed = manifests["NetworkPolicy", "prune-optipfair-api"]["spec"]["podSelector"]["matchLabels"]
    assert allowed["app.kubernetes.io/component"] == "api"
    assert manifests["NetworkPolicy", "prune-optipfair"]["spec"]["ingress"] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_variable_is_a_setting_and_every_command_exists(path: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("postgresql://someone@somewhere/jobs")
    commands = typer.main.get_command(command_line)
    values = merged(yaml.safe_load(path.read_text()), {"settings": {"model_cache_bytes": 53_687_091_200}})
    for pod in pods(named(values)).values():
        environ = {
            name: re.sub(r"^/secrets/.*", str(secret), value) if name.endswith("_FILE") else value
            for name, value in environment(pod).items()
        }
        assert read_settings({}, environ).model_cache_bytes == 53_687_091_200
        _, *arguments = pod["containers"][0].get("args", ["optipfair-service", "api"])
        verb = commands.get_command(typer.Context(commands), arguments[0])  # type: ignore[attr-defined]
        verb.make_context(arguments[0], arguments[1:], resilient_parsing=False).close()


def test_the_schema_is_migrated_before_anything_is_replaced() -> None:
    job = named(example("minimal"))["Job", "prune-optipfair-migrate"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"


def test_a_sleeping_pool_is_started_by_what_waits() -> None:
    manifests = named(example("production"))
    pool = manifests["ScaledJob", "prune-optipfair-worker-gpu"]["spec"]
    assert ("Deployment", "prune-optipfair-worker-gpu") not in manifests
    (container,) = pool["jobTargetRef"]["template"]["spec"]["containers"]
    assert container["args"][-3:] == ["--once", "--wait", "120"]
    (trigger,) = pool["triggers"]
    assert trigger["metadata"]["url"] == "http://prune-optipfair-api.ml:8000/v1/system"
    assert trigger["metadata"]["valueLocation"] == 'queues.#(name=="gpu").length'
    for pod in pods(manifests).values():
        assert environment(pod)["OPTIPFAIR_SLEEPING_QUEUES"] == "gpu"
    keda = pytest.importorskip("cloudcoil.models.keda.v1alpha1", reason="cloudcoil-models-keda is not here")
    del container["resources"]  # the models refuse whole numbers, which quantities may be
    for kind in ("ScaledJob", "TriggerAuthentication"):
        getattr(keda, kind).model_validate(manifests[kind, "prune-optipfair-worker-gpu"])


def test_monitoring_takes_the_alerts_of_the_tree() -> None:
    manifests = named(example("production"))
    alerts = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yml").read_text())
    assert manifests["PrometheusRule", "prune-optipfair"]["spec"] == alerts
    service = manifests["Service", "prune-optipfair-api"]["metadata"]["labels"]
    chosen = manifests["ServiceMonitor", "prune-optipfair"]["spec"]["selector"]["matchLabels"]
    assert chosen.items() <= service.items()


def test_the_chart_has_the_distributions_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert version is not None
    assert (chart["version"], chart["appVersion"]) == (version[1], version[1])
