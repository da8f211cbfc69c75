"""docker-compose.yml keeps what the page of operations promises of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.settings import read_settings
from worker.beats import ALIVE_FILE

FILE = Path(__file__).parents[2] / "docker-compose.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = [FILE.with_name("Dockerfile"), FILE.with_name("Dockerfile.gpu")]
LASTING = sorted(set(SERVICES) - {"migrate"})


@pytest.mark.parametrize("name", LASTING)
def test_what_lasts_is_started_again(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_secrets_are_files_and_each_service_gets_those_that_it_needs() -> None:
    assert not re.findall(r"\$\{\w*(?:PASSWORD|KEY)\w*", FILE.read_text())
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}
    for name, service in SERVICES.items():
        named = set(re.findall(r"/run/secrets/(\w+)", str(service)))
        given = set(service.get("secrets", ()))
        assert named <= given, f"{name} reads a secret that it is not given"
        assert given <= named | {"metrics_key"}, f"{name} is given a secret that it does not read"


def test_profiles_choose_workers_and_monitoring() -> None:
    found = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert found == {
        "worker": ["cpu"],
        "worker-gpu": ["gpu"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }


@pytest.mark.parametrize("name", ["migrate", "api", "worker", "worker-gpu"])
def test_ours_run_without_privileges(name: str) -> None:
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_what_is_mounted_is_in_the_tree(name: str) -> None:
    sources = [volume.split(":")[0] for volume in SERVICES[name]["volumes"] if volume.startswith("./")]
    assert sources
    assert all((FILE.parent / source).exists() for source in sources)


def test_nothing_listens_beyond_this_machine_unless_asked_to() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == [
        "${BIND:-127.0.0.1}:${PORT:-8000}:8000",
        "${BIND:-127.0.0.1}:${GRAFANA_PORT:-3000}:3000",
    ]


def test_images_are_pinned() -> None:
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    assert images
    assert all(re.search(r":v?\d+\.\d+", image) for image in images)
    bases = [
        line for path in DOCKERFILES for line in path.read_text().splitlines() if line.startswith("FROM")
    ]
    assert len(bases) == 4
    assert all(re.search(r":3\.\d+\.\d+-", base) for base in bases)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_made_in_stages_and_run_as_nobody_that_matters(path: Path) -> None:
    text = path.read_text()
    last = text[text.rindex("FROM") :]
    assert "COPY --from=build" in last
    assert re.findall(r"^USER (\S+)", last, re.MULTILINE) == ["10001"]
    assert "HEALTHCHECK" in last


@pytest.mark.parametrize("name", ["worker", "worker-gpu", "postgres", "redis", "s3", "prometheus", "grafana"])
def test_its_health_is_looked_at(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]


def test_a_worker_is_well_while_it_beats() -> None:
    assert f"/data/work/{ALIVE_FILE}" in SERVICES["worker"]["healthcheck"]["test"][1]


@pytest.mark.parametrize("name", ["migrate", "api", "worker", "worker-gpu"])
def test_every_variable_is_a_setting(name: str, tmp_path: Path) -> None:
    given = SERVICES[name]["environment"] | {"OPTIPFAIR_PUBLIC_URL": "http://x"}
    secret = tmp_path / "secret"
    secret.write_text("p@ss/word\n")
    environ = {key: re.sub(r"^/run/secrets/\w+", str(secret), value) for key, value in given.items()}
    settings = read_settings({}, environ)  # a misspelt one would be an error that names it
    assert settings.database_url == "postgresql://optipfair:p%40ss%2Fword@postgres/optipfair"
    assert settings.artifacts_s3_secret_key == "p@ss/word"
