"""What is measured beside what: the published library, this checkout, and one model for both."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEER = "optipfair==0.4.2"
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "bf16")
_RESTRICTIONS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
COMMAND = Path(sys.executable).with_name("optipfair")


def peer_python(given: str | Path | None, folder: Path) -> str:
    """A Python with the published library: the given one, or a new environment in ``folder``.

    It gets our versions of all else, and compiled as pip would leave it, so that no side's first start is
    slower.
    """
    if given is not None:
        return str(given)
    uv, python = Path(sys.executable).with_name("uv"), folder / "bin" / "python"
    subprocess.run([str(uv), "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    environment = dict(os.environ)
    install = [str(uv), "pip", "install", "-q", "--compile-bytecode", "--python", str(python)]
    if "PIP_FIND_LINKS" in environment:
        environment.setdefault("UV_FIND_LINKS", environment["PIP_FIND_LINKS"])
    else:  # the plain build of torch for Linux brings gigabytes of CUDA
        install.append("--torch-backend=cpu")
    packages = [PEER.replace("==", "[viz]=="), "torch", "transformers"]
    subprocess.run([*install, "-c", str(ROOT / "constraints.txt"), *packages], check=True, env=environment)
    return str(python)


def environment_of(command: str | Path) -> dict[str, str]:
    """The environment of one side's process; ours finds this checkout, and all keep their bytecode."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    environment.pop("PYTHONPATH", None)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if str(command) in (sys.executable, str(COMMAND)):
        environment["PYTHONPATH"] = str(ROOT)
    return environment


def demo_model(given: Path | None, folder: Path) -> Path:
    """The given model folder, or the demo model written to ``folder``."""
    if given is None:
        from optipfair_engine.checkpoints.demo import write_demo_model

        write_demo_model(folder)
    return given or folder


def loaded_demo_model(given: Path | None, dtype: Any) -> tuple[str, Any, Any]:
    """Name, model and tokenizer of the given folder or of the demo model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        folder = demo_model(given, Path(scratch) / "SmolLM2-135M-Instruct")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        return folder.name, model, AutoTokenizer.from_pretrained(folder)


def processor() -> str:
    """The processor's name, and which of the extensions it has that decide how fast number types are.

    Where oneDNN or torch were told to use less, that stands behind it.
    """
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    lines = [line.partition(":") for line in facts.splitlines()]
    named = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    flags = set(named.get("flags", named.get("Features", "")).split())
    found = [flag for flag in _FLAGS if flag in flags] or ["no AVX2"]
    told = [f"{name}={os.environ[name]}" for name in _RESTRICTIONS if name in os.environ]
    return f"{named.get('model name', platform.machine())} ({', '.join(found + told)})"


def test_data() -> Path:
    """Where the public data sets lie: OPTIPFAIR_TEST_DATA or ../shared/data."""
    return Path(os.environ.get("OPTIPFAIR_TEST_DATA", ROOT.parent / "shared" / "data"))


def manual_text(given: Path | None, folder: Path) -> Path:
    """The given calibration text, or that of Python's own manual, written to ``folder``."""
    if given is not None:
        return given
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from demo.topics import calibration_text

    file = folder / "manual.txt"
    file.write_text(calibration_text(), encoding="utf-8")
    return file
