"""A page of headings, paragraphs, tables and plots, as Markdown and as one HTML file that needs nothing else."""

import html
import re
from pathlib import Path
from typing import Any, NamedTuple

from megatron_chimed.evaluation.reports.plots import save_png
from megatron_chimed.jsonl import atomic_output

STYLE = """body{font:16px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em;overflow-wrap:break-word}
table{border-collapse:collapse}td,th{border:1px solid #999;padding:.2em .6em}
th{text-align:left}.number{text-align:right}
.wide,pre,figure{overflow-x:auto;margin:1em 0}svg{max-width:100%;height:auto}code{background:#eee}
@media(max-width:45em){svg{max-width:none;width:45em}td,th{padding:.2em .3em;font-size:85%}}"""
"""What is wider than a telephone is moved in its own box, and never the page."""


class Block(NamedTuple):
    """A piece of the report. kind: h1, h2, h3, p, code (a list of lines), table (rows, the first the header), plot
    (name, SVG, the figure of matplotlib, what it shows, for those who do not see it)."""

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
            parts.append(f"![{content[3]}]({content[0]}.png)")
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
            parts.append('<pre tabindex="0"><code>' + html.escape("\n".join(content)) + "</code></pre>")
        elif kind == "plot":
            told = f'<svg role="img" aria-label="{html.escape(content[3])}"'
            parts.append(f'<figure id="{content[0]}" tabindex="0">{content[1].replace("<svg", told, 1)}</figure>')
        else:
            rows = []
            for number, row in enumerate(content):
                rows.append("<tr>" + "".join(_cell(cell, "td" if number else "th") for cell in row) + "</tr>")
            parts.append('<div class="wide" tabindex="0"><table>' + "\n".join(rows) + "</table></div>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>"
    return "\n".join(["<!doctype html>", f'<html lang="en">{head}', *parts, "</html>", ""])


def _cell(text: str, tag: str) -> str:
    """A cell of a table; numbers stand at its right."""
    kind = ' class="number"' if re.match(r"[-+±]?\d", text) else ""
    return f"<{tag}{kind}>{html.escape(text)}</{tag}>"
