"""What every test shares: one thread for torch, and where the public data sets may be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium  # noqa: F401  # for every test that asks for it
from tests.scheduling import WholeFiles, longest_first

# Two OpenMP threads on a busy two-core machine make small products many times slower: set it before torch
# is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WholeFiles | None:
    """With ``--dist loadgroup``: files whole, in the order that they were collected in."""
    if config.getvalue("dist") != "loadgroup":
        return None
    config.option.loadscopereorder = False
    return WholeFiles(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a process of pytest-xdist, what takes long begins first."""
    if hasattr(config, "workerinput"):
        items[:] = longest_first(items)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the public data sets (WikiText-2, CrowS-Pairs, StereoSet); skips where it is absent."""
    folder = Path(os.environ.get("OPTIPFAIR_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no public data sets at {folder} (set OPTIPFAIR_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy: faster than migrating for each test."""
    import migrations
    from jobs.database import connect

    path = tmp_path_factory.mktemp("template") / "service.db"
    migrations.upgrade(f"sqlite:///{path}")
    engine = connect(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    return path
