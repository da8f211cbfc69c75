"""What docs/http.md tells a first user to paste, pasted as it stands: into bash, against a real service."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.service.harness import Service, environment

GUIDE = (Path(__file__).resolve().parents[3] / "docs" / "http.md").read_text()
pytestmark = [pytest.mark.server, pytest.mark.slow]


def blocks(heading: str = "") -> str:
    """All shell blocks under a heading; of the beginning, those before the first."""
    section = GUIDE.partition(f"\n## {heading}\n")[2] if heading else GUIDE
    return "\n".join(re.findall(r"^```bash\n(.*?)^```$", section.partition("\n## ")[0], re.M | re.S))


def paste(service: Service, folder: Path, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run what was copied where `data` is the service's folder, behind what the page's beginning defines."""
    if not (folder / "data").exists():
        (folder / "data").symlink_to(service.data_dir)
    start = blocks().replace("http://127.0.0.1:8000", service.url)
    return subprocess.run(
        ["bash", "-c", f"{start}\nset -e -o pipefail\n{script}"],
        cwd=folder,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def walk() -> str:
    """From a job to a checkpoint; the model of this service is another one."""
    return blocks("From a job to a checkpoint").replace("smollm2", "tiny")


def test_the_walk_ends_with_whole_files_and_the_download_again_is_no_error(
    service: Service, tmp_path: Path
) -> None:
    done = paste(service, tmp_path, walk(), BUILD_ID="7")
    assert done.returncode == 0, done.stderr
    assert "verdict: pass" in done.stdout and "model.safetensors: OK" in done.stdout
    (job_id,) = (path.stem for path in tmp_path.glob("*.tar"))
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file()}
    download = "# 6." + walk().partition("# 6.")[2]
    again = paste(service, tmp_path, f"JOB={job_id}\n{download}")
    assert again.returncode == 0, again.stderr
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file()}
    assert {name for name in written if kept[name] != written[name]} == {"SHA256SUMS"}


def test_a_download_that_was_cut_goes_on_when_the_loop_is_pasted_again(
    service: Service, tmp_path: Path
) -> None:
    job_id = service.post_job()
    service.wait_end(job_id)
    (tmp_path / "model.safetensors").write_bytes(service.download(job_id)["model.safetensors"][:1000])
    done = paste(service, tmp_path, f"JOB={job_id}\n# 6.{walk().partition('# 6.')[2]}")
    assert done.returncode == 0, done.stderr
    assert "model.safetensors: OK" in done.stdout


def test_without_a_build_number_no_job_is_made_under_a_key_that_every_build_would_share(
    service: Service, tmp_path: Path
) -> None:
    before = len(service.get("/v1/jobs")["items"])
    done = paste(service, tmp_path, walk())
    assert done.returncode != 0 and "set it to the number of your build" in done.stderr
    assert len(service.get("/v1/jobs")["items"]) == before


def test_a_text_is_uploaded_by_what_the_page_says(service: Service, tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text("Some text to calibrate on. " * 20)
    script = blocks("Uploads").partition("sha()")
    done = paste(service, tmp_path, script[1] + script[2])
    assert done.returncode == 0, done.stderr
    assert '"state":"complete"' in done.stdout
