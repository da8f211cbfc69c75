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
LASTING = sorted(set(SERVICES) - {"migrate"})


@pytest.mark.parametrize("name", LASTING)
def test_what_lasts_is_started_again(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_no_secret_has_a_default() -> None:
    names = re.findall(r"\$\{(\w*(?:PASSWORD|KEY)\w*)(:\?)?", FILE.read_text())
    assert {name for name, _ in names} == {"POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
    assert all(required for _, required in names)


def test_nothing_listens_beyond_this_machine_unless_asked_to() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == ["${BIND:-127.0.0.1}:${PORT:-8000}:8000"]


def test_images_are_pinned() -> None:
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    assert images
    assert all(re.search(r":\d+\.\d+", image) for image in images)


@pytest.mark.parametrize("name", ["worker", "worker-gpu", "postgres", "redis", "s3"])
def test_its_health_is_looked_at(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]


def test_a_worker_is_well_while_it_beats() -> None:
    assert f"/data/work/{ALIVE_FILE}" in SERVICES["worker"]["healthcheck"]["test"][1]


@pytest.mark.parametrize("name", ["migrate", "api", "worker", "worker-gpu"])
def test_every_variable_is_a_setting(name: str) -> None:
    words = {key: "x" for key in SERVICES[name]["environment"] if not key.endswith(("URL", "ENDPOINT"))}
    urls = {key: "http://x" for key in SERVICES[name]["environment"] if key.endswith(("URL", "ENDPOINT"))}
    assert read_settings({}, {**words, **urls})  # a misspelt one would be an error that names it
