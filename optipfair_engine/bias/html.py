"""The parts of a report's page: style, tables, and figures that are embedded."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Final

#: Pixels across an embedded figure: twice a page's width, for screens with fine pixels.
_WIDTH: Final = 1800

STYLE: Final = """
:root{color-scheme:light dark;--ink:#1d2126;--soft:#5d6670;--line:#d8dde2;--page:#fff;--card:#f5f7f9;
--accent:#0072b2;--good:#00694e;--bad:#a63a06;--warn:#b34f00}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#a3adb7;--line:#3a424a;--page:#15191d;
--card:#1f252b;--accent:#5bb4ea;--good:#4cc9a0;--bad:#f5945c;--warn:#f0a04b}}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:68rem;
margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .8rem}
h2{font-size:1.2rem;margin:2.4rem 0 .6rem;padding-bottom:.25rem;scroll-margin-top:1rem;
border-bottom:1px solid var(--line)}
.conclusion{font-size:1.15rem;border-left:4px solid var(--accent);background:var(--card);
padding:.7rem 1rem;margin:0 0 1.2rem}
nav{background:var(--card);border-radius:6px;padding:.5rem 1rem;font-size:.94rem;margin:1.2rem 0}
nav ol{margin:0;padding-left:1.4rem;columns:2 18rem}
a{color:var(--accent)}
th button{all:unset;cursor:pointer}th button:focus-visible{outline:2px solid var(--accent)}
th button::after{content:"\\a0↕";opacity:.45}
[aria-sort=descending] button::after{content:"\\a0↓";opacity:1}
[aria-sort=ascending] button::after{content:"\\a0↑";opacity:1}
.scroll{overflow-x:auto;margin:.7rem 0 1.2rem}
table{border-collapse:collapse;width:100%;font-size:.94rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding-bottom:.45rem;font-size:.9rem}
th,td{padding:.3rem .5rem .3rem 0;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th:not(:first-child),td:not(:first-child){padding-left:.6rem}
td:not(.text){white-space:nowrap}
th{font-weight:600;color:var(--soft)}
.text{text-align:left}td.text:not(:first-child){min-width:16rem}
ul.warnings{list-style:none;padding:0;margin:.4rem 0}
.warnings li{border-left:4px solid var(--warn);background:var(--card);padding:.3rem .8rem;margin:.45rem 0}
.better{color:var(--good);font-weight:600}.worse{color:var(--bad);font-weight:600}
.inconclusive,.not_comparable{color:var(--soft);font-weight:600}
figure{margin:1.2rem 0;background:#fff;border:1px solid var(--line);border-radius:6px;overflow:hidden}
figure img{display:block;width:100%;height:auto}
@media print{nav{display:none}th button::after{content:""}}
figcaption{color:#555;background:#fff;font-size:.85rem;padding:.2rem .8rem .5rem}
"""


#: Tables sort by a click on a column's name. Where scripts may not run, they are as they are.
SCRIPT: Final = """
(() => {
  const number = (text) => {
    const value = parseFloat(text.replace(/[,\\s<]/g, "").replace("\u2212", "-"));
    return Number.isNaN(value) ? -Infinity : value;
  };
  const sort = (table, head, column) => {
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const text = (row) => row.cells[column].textContent;
    const words = head.classList.contains("text");
    const order = (a, b) => words
      ? text(b).localeCompare(text(a), undefined, {numeric: true})
      : number(text(b)) - number(text(a)) || 0;
    const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? order(a, b) : -order(a, b)));
    table.tBodies[0].append(...rows);
  };
  for (const table of document.querySelectorAll("table")) {
    if (table.tBodies[0].rows.length < 3) continue;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head, column));
      head.append(button);
    });
  }
})();
"""
_LEAST_HEADINGS: Final = 3


def page(title: str, body: Iterable[str]) -> str:
    """The whole page, with a contents list before its first section; nothing in it is fetched.

    Its own policy lets no other script run than the one that sorts tables.
    """
    text, contents = _with_contents("\n".join(body))
    digest = base64.b64encode(sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{text.replace(_PLACE, contents, 1)}\n"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


_PLACE: Final = "<!--contents-->"


def _with_contents(body: str) -> tuple[str, str]:
    """The body with a name for every section, and the list of them, to stand at ``_PLACE``."""
    headings: list[str] = []

    def named(found: re.Match[str]) -> str:
        headings.append(found[1])
        place = _PLACE if len(headings) == 1 else ""
        return f'{place}<h2 id="s{len(headings)}">{found[1]}</h2>'

    text = re.sub("<h2>(.*?)</h2>", named, body)
    if len(headings) < _LEAST_HEADINGS:
        return text, ""
    items = "".join(f'<li><a href="#s{n}">{heading}</a></li>' for n, heading in enumerate(headings, 1))
    return text, f'<nav aria-label="Contents"><ol>{items}</ol></nav>'


def table(
    caption: str, headers: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Sequence[int] = (0,)
) -> str:
    """A table of cells that are HTML already; the columns ``texts`` are read from the left."""
    kinds = [' class="text" dir="auto"' if n in texts else "" for n in range(len(headers))]
    heads = [' class="text"' if n in texts else "" for n in range(len(headers))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>' for kind, name in zip(heads, headers, strict=True)
    )
    lines = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    top = f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
    return f'<div class="scroll"><table>{top}<tbody>\n{lines}\n</tbody></table></div>'


def outcome(word: str) -> str:
    """An outcome's word in its colour."""
    return f'<span class="{word}">{word.replace("_", " ")}</span>'


def yes_or_no(value: bool | None) -> str:
    """A flag in words; a dash where nothing says."""
    return "–" if value is None else ("yes" if value else "no")


def figure(path: Path, alt: str) -> str:
    """A figure inside the page, with what it shows in words."""
    data, kind = _embedded(path)
    return (
        f'<figure><img loading="lazy" alt="{escape(alt)}" src="data:{kind};base64,{data}">'
        f"<figcaption>{escape(path.name)}</figcaption></figure>"
    )


def _embedded(path: Path) -> tuple[str, str]:
    """Base64 of a figure; bitmaps are scaled down for the page, the files keep their 300 dpi."""
    if path.suffix == ".svg":
        return base64.b64encode(path.read_bytes()).decode("ascii"), "image/svg+xml"
    from PIL import Image

    with Image.open(path) as image:
        reduced = image.convert("RGB")
        if image.width > _WIDTH:
            size = (_WIDTH, round(image.height * _WIDTH / image.width))
            reduced = reduced.resize(size, Image.Resampling.BOX)
    buffer = BytesIO()
    reduced.quantize(128).save(buffer, "PNG", optimize=False)
    return base64.b64encode(buffer.getvalue()).decode("ascii"), "image/png"
