"""What each extra of the distribution promises, shown in an environment that holds nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.servers import valkey

ROOT = Path(__file__).resolve().parent.parent

PUBLISH = """
import importlib.util, sys
import api.main
heavy = [name for name in ("torch", "transformers", "matplotlib") if importlib.util.find_spec(name)]
sys.exit(f"the API's extra brought {heavy}") if heavy else None
from jobs.queue import Publisher
from jobs.rows import OutboxEntry
from jobs.settings import Settings
from pathlib import Path
publisher = Publisher(Settings(broker_url=sys.argv[1], data_dir=Path(sys.argv[2])))
publisher.publish(OutboxEntry(1, "0192f0c1-0000-7000-8000-000000000000", "cpu", 0, None))
publisher.close()
"""


@pytest.fixture(scope="module")
def make_environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes an empty environment with one extra installed, from the same constraints as everything else."""
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        pytest.skip("uv is not installed beside this Python (make setup installs it)")

    def make(extra: str) -> Path:
        home = tmp_path_factory.mktemp("environment") / "venv"
        python = home / "bin" / "python"
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, home], check=True)
        install = [uv, "pip", "install", "-q", "--python", python, "-c", ROOT / "constraints.txt"]
        subprocess.run([*install, f"{ROOT}[{extra}]"], check=True)
        return python

    return make


@pytest.mark.slow
@pytest.mark.server
def test_the_api_extra_alone_serves_and_publishes(
    make_environment: Callable[[str], Path], tmp_path: Path
) -> None:
    python = make_environment("api")
    with valkey() as broker:
        command = [python, "-c", PUBLISH, broker.url, str(tmp_path)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OPTIPFAIR_")}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        with redis.Redis(unix_socket_path=str(broker.socket)) as client:
            queued = [key for key in client.keys("cpu*") if client.type(key) == b"list"]
            assert sum(client.llen(key) for key in queued) == 1


@pytest.mark.slow
def test_the_client_extra_alone_runs_the_verbs_of_a_caller(
    make_environment: Callable[[str], Path], tmp_path: Path
) -> None:
    python = make_environment("client")
    absent = [
        "torch",
        "transformers",
        "numpy",
        "fastapi",
        "sqlalchemy",
        "celery",
        "alembic",
        "pydantic_settings",
    ]
    look = f"""
import importlib.util, pathlib, service
from service.client import OptipfairClient
print([name for name in {absent!r} if importlib.util.find_spec(name)])
print(pathlib.Path(service.__path__[0], "py.typed").exists())
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPTIPFAIR_", "PYTHON"))}
    options = {"cwd": tmp_path, "env": environment, "text": True}
    assert subprocess.check_output([python, "-c", look], **options) == "[]\nTrue\n"
    (tmp_path / "job.json").write_text("{}")
    command = [python.with_name("optipfair-service"), "run", "job.json", "--key", "ofk_x"]
    command += ["--url", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, check=False, **options)
    assert (done.returncode, "no answer from" in done.stderr) == (4, True), done.stderr
