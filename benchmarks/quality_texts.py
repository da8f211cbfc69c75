"""The texts of ``quality.py``: WikiText-2, and code of the standard library (other files for the test)."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from sides import test_data

#: What the mixture is calibrated on …
CODE_CALIBRATION = (
    "argparse.py", "ast.py", "configparser.py", "datetime.py", "difflib.py", "ftplib.py", "inspect.py",
    "mailbox.py", "optparse.py", "pathlib.py", "pickle.py", "smtplib.py", "tarfile.py", "threading.py",
)  # fmt: skip

#: … and what it is tested on: no file of the list above, and no package of one.
CODE_TEST = (
    "asyncio/base_events.py", "calendar.py", "codecs.py", "email/message.py", "fractions.py", "heapq.py",
    "http/client.py", "json/decoder.py", "logging/handlers.py", "shutil.py", "statistics.py", "subprocess.py",
    "textwrap.py", "unittest/mock.py", "urllib/parse.py", "zipfile.py",
)  # fmt: skip


def wikitext(name: str) -> str:
    """``valid`` or ``test`` of WikiText-2, from OPTIPFAIR_TEST_DATA or ../shared/data."""
    return (test_data() / "wikitext2" / f"{name}.txt").read_text(encoding="utf-8")


def code(names: tuple[str, ...]) -> str:
    """These files of the running Python's standard library, one after the other."""
    folder = Path(sysconfig.get_path("stdlib"))
    return "\n".join(
        (folder / name).read_text(encoding="utf-8") for name in names if (folder / name).exists()
    )
