"""The verdict as JUnit XML, which CI systems show as tests: one test case a gate."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from xml.etree import ElementTree as ET  # only writes; nothing foreign is parsed

from api import models
from api.verdict import wording

MAX_TEXT = 4000


def render(job: models.Job, verdict: models.Verdict, link: str) -> bytes:
    """`<failure>` for a gate that failed, `<error>` for one left undecided or a job that failed."""
    suite = ET.Element("testsuite", name="optipfair", timestamp=(job.finished_at or "").rstrip("Z"))
    properties = ET.SubElement(suite, "properties")
    for name, value in (("job", job.id), ("verdict", verdict.verdict), ("url", link)):
        ET.SubElement(properties, "property", name=name, value=clean(value))
    seconds = f"{_seconds(job):.3f}"
    if job.state.value != "succeeded":
        _job_error(suite, job, seconds)
    names = Counter(check.metric for check in verdict.checks)
    for check in verdict.checks:
        name = (
            check.metric
            if names[check.metric] == 1
            else f"{check.metric} {wording.bound(check.model_dump())}"
        )
        _case(suite, check, name, f"optipfair.{job.kind}")
    if job.warnings:  # beside the cases: they decide nothing
        told = "\n".join(f"{item.code}: {item.message}" for item in job.warnings)
        ET.SubElement(suite, "system-out").text = clean(told)
    counts = {
        "tests": len(suite.findall("testcase")),
        "failures": len(suite.findall("testcase/failure")),
        "errors": len(suite.findall("testcase/error")),
    }
    root = ET.Element("testsuites", name="optipfair")
    for element in (root, suite):
        for key, count in counts.items():
            element.set(key, str(count))
        element.set("time", seconds)
    root.append(suite)
    ET.indent(root)
    written: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return written


def clean(text: str) -> str:
    """Text without what XML 1.0 can't hold, cut at a length."""
    kept = "".join(c if c in "\t\n" or c.isprintable() else " " for c in text)
    return kept if len(kept) <= MAX_TEXT else kept[:MAX_TEXT] + " …"


def _job_error(suite: ET.Element, job: models.Job, seconds: str) -> None:
    case = ET.SubElement(suite, "testcase", classname=f"optipfair.{job.kind}", name="job", time=seconds)
    code = job.error.code if job.error else job.state.value
    message = job.error.message if job.error else f"The job {wording.ending(job.state.value)}."
    ET.SubElement(case, "error", type=clean(code), message=clean(message)).text = clean(
        f"The job {wording.ending(job.state.value)}: {message}"
    )


def _case(suite: ET.Element, check: models.Check, name: str, classname: str) -> None:
    case = ET.SubElement(suite, "testcase", classname=classname, name=clean(name), time="0")
    words = check.model_dump()
    said = f"{check.metric} is {wording.value(words)}; the bound is {wording.bound(words)}"
    if check.result == "pass":
        ET.SubElement(case, "system-out").text = clean(said)
        return
    kind = "failure" if check.result == "fail" else "error"
    message = f"{said}: {check.reason}" if check.reason else said
    ET.SubElement(case, kind, type=check.result, message=clean(message)).text = clean(message)


def _seconds(job: models.Job) -> float:
    if job.started_at is None or job.finished_at is None:
        return 0.0
    start, end = (datetime.fromisoformat(text) for text in (job.started_at, job.finished_at))
    return max((end - start).total_seconds(), 0.0)
