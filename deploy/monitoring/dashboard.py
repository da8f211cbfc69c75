"""Writes `dashboard.json`, which Grafana imports: `python deploy/monitoring/dashboard.py`.

Figures of the whole database are the same in every API process, so queries take `max by` over instances;
counters of one process (HTTP) are summed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("dashboard.json")
WINDOW = "$__rate_interval"
WAITING = "max by (queue) (optipfair_queue_length)"
#: Title, unit, width (of 24), and the queries with their legends; a row of its own begins where None stands.
Panel = tuple[str, str, int, list[tuple[str, str]]]
ROWS: dict[str, list[Panel]] = {
    "Now": [
        (
            "Jobs that wait",
            "short",
            6,
            [("sum(max by (queue) (optipfair_queue_length)) or vector(0)", "waiting")],
        ),
        ("Oldest waiting job", "s", 6, [("max(optipfair_queue_age_seconds) or vector(0)", "oldest")]),
        ("Workers at work", "short", 6, [("sum(max by (worker) (optipfair_worker_busy))", "busy")]),
        ("Workers that take nothing", "short", 6, [("max(optipfair_worker_stalled)", "stalled")]),
    ],
    "Jobs": [
        (
            "Jobs that ended, by end",
            "short",
            12,
            [
                (
                    f"sum by (state) (max by (kind, state) (increase(optipfair_jobs_ended_total[{WINDOW}])))",
                    "{{state}}",
                )
            ],
        ),
        (
            "Verdicts",
            "short",
            12,
            [
                (
                    "sum by (verdict) (max by (kind, verdict) "
                    f"(increase(optipfair_verdicts_total[{WINDOW}])))",
                    "{{verdict}}",
                )
            ],
        ),
        (
            "Wait in the queue, 95 of 100 below",
            "s",
            12,
            [
                (
                    "histogram_quantile(0.95, sum by (queue, le) (max by (kind, queue, le) "
                    f"(rate(optipfair_queue_wait_seconds_bucket[{WINDOW}]))))",
                    "{{queue}}",
                )
            ],
        ),
        (
            "Time of attempts that succeeded, 95 of 100 below",
            "s",
            12,
            [
                (
                    "histogram_quantile(0.95, sum by (kind, le) (max by (kind, le) "
                    f'(rate(optipfair_run_seconds_bucket{{outcome="succeeded"}}[{WINDOW}]))))',
                    "{{kind}}",
                )
            ],
        ),
        (
            "Attempts that were lost or preempted",
            "short",
            12,
            [
                (
                    "sum by (outcome) (max by (kind, outcome) (increase(optipfair_attempts_ended_total"
                    f'{{outcome=~"lost|preempted"}}[{WINDOW}])))',
                    "{{outcome}}",
                )
            ],
        ),
        (
            "Waiting jobs by queue",
            "short",
            12,
            [(WAITING, "{{queue}}")],
        ),
    ],
    "Workers and room": [
        ("Live workers by queue", "short", 8, [("max by (queue) (optipfair_workers)", "{{queue}}")]),
        ("Free disk", "bytes", 8, [("min by (instance) (optipfair_disk_free_bytes)", "{{instance}}")]),
        ("Kept files by tenant", "bytes", 8, [("max by (tenant) (optipfair_artifact_bytes)", "{{tenant}}")]),
    ],
    "HTTP": [
        (
            "Requests a second by status",
            "reqps",
            8,
            [(f"sum by (status) (rate(optipfair_http_requests_total[{WINDOW}]))", "{{status}}")],
        ),
        (
            "Time of answers, 95 of 100 below (held ones too)",
            "s",
            8,
            [
                (
                    "histogram_quantile(0.95, sum by (le) "
                    f"(rate(optipfair_http_request_seconds_bucket[{WINDOW}])))",
                    "all",
                )
            ],
        ),
        (
            "Webhook messages",
            "short",
            8,
            [
                (
                    f"max by (outcome) (increase(optipfair_webhooks_total[{WINDOW}]))",
                    "{{outcome}}",
                )
            ],
        ),
    ],
}


def queries() -> list[str]:
    """Every query of the dashboard."""
    return [query for panels in ROWS.values() for panel in panels for query, _ in panel[3]]


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(_row(title, y, len(panels) + 1))
        y += 1
        x, height = 0, 4 if title == "Now" else 8
        for panel in row:
            if x + panel[2] > 24:
                x, y = 0, y + height
            panels.append(_panel(panel, x, y, height, len(panels) + 1))
            x += panel[2]
        y += height
    return {
        "title": "OptiPFair Service",
        "uid": "optipfair-service",
        "tags": ["optipfair"],
        "schemaVersion": 39,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [{"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}]
        },
        "panels": panels,
    }


def _row(title: str, y: int, number: int) -> dict[str, Any]:
    grid = {"x": 0, "y": y, "w": 24, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": grid, "panels": []}


def _panel(panel: Panel, x: int, y: int, height: int, number: int) -> dict[str, Any]:
    title, unit, width, asked = panel
    source = {"type": "prometheus", "uid": "${source}"}
    targets = [
        {"refId": chr(ord("A") + place), "datasource": source, "expr": expr, "legendFormat": legend}
        for place, (expr, legend) in enumerate(asked)
    ]
    return {
        "id": number,
        "type": "stat" if height == 4 else "timeseries",
        "title": title,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "targets": targets,
    }


def render() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render())
