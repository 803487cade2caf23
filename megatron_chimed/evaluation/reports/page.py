"""A page of headings, paragraphs, tables and plots, as Markdown and as one HTML file that needs nothing else."""

import html
import re
from pathlib import Path
from typing import Any, NamedTuple

from megatron_chimed.evaluation.reports.plots import save_png
from megatron_chimed.jsonl import atomic_output

STYLE = """body{font:16px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}
td,th{border:1px solid #999;padding:.2em .6em}th{text-align:left}.number{text-align:right}
svg{max-width:100%;height:auto}code{background:#eee}"""


class Block(NamedTuple):
    """A piece of the report. kind: h1, h2, h3, p, code (a list of lines), table (rows, the first the header), plot
    (name, SVG, the figure of matplotlib)."""

    kind: str
    content: Any


def write_page(blocks: list[Block], output: Path, title: str) -> list[Path]:
    """Write report.md, report.html and the plots' PNG files into a folder; returns their paths."""
    written = []
    for name, text in (("report.md", to_markdown(blocks)), ("report.html", to_html(blocks, title))):
        with atomic_output(output / name) as file:
            file.write(text)
        written.append(output / name)
    for block in blocks:
        if block.kind == "plot":
            written.append(save_png(block.content[2], output / f"{block.content[0]}.png"))
    return written


def to_markdown(blocks: list[Block]) -> str:
    """The report as Markdown."""
    parts = []
    for kind, content in blocks:
        if kind in ("h1", "h2", "h3"):
            parts.append("#" * int(kind[1]) + f" {content}")
        elif kind == "p":
            parts.append(content)
        elif kind == "code":
            parts.append("\n".join(["```", *content, "```"]))
        elif kind == "plot":
            parts.append(f"![{content[0]}]({content[0]}.png)")
        else:
            cells = [[cell.replace("|", "\\|") for cell in row] for row in content]
            lines = ["| " + " | ".join(row) + " |" for row in cells]
            parts.append("\n".join([lines[0], "|" + "---|" * len(content[0]), *lines[1:]]))
    return "\n\n".join(parts) + "\n"


def to_html(blocks: list[Block], title: str) -> str:
    """The report as one HTML file."""
    parts = []
    for kind, content in blocks:
        if kind in ("h1", "h2", "h3", "p"):
            parts.append(f"<{kind}>{html.escape(content)}</{kind}>")
        elif kind == "code":
            parts.append("<pre><code>" + html.escape("\n".join(content)) + "</code></pre>")
        elif kind == "plot":
            parts.append(f'<figure id="{content[0]}">{content[1]}</figure>')
        else:
            rows = []
            for number, row in enumerate(content):
                rows.append("<tr>" + "".join(_cell(cell, "td" if number else "th") for cell in row) + "</tr>")
            parts.append("<table>" + "\n".join(rows) + "</table>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title>\n<style>{STYLE}</style>'
    return "\n".join(["<!doctype html>", f'<html lang="en">{head}', *parts, "</html>", ""])


def _cell(text: str, tag: str) -> str:
    """A cell of a table; numbers stand at its right."""
    kind = ' class="number"' if re.match(r"[-+±]?\d", text) else ""
    return f"<{tag}{kind}>{html.escape(text)}</{tag}>"
