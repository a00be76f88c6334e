"""Mermaid diagrams drawn while the site is built, as SVG in the page with the theme's colours."""

from __future__ import annotations

import html
import re

import mermaidx

_BLOCK = re.compile(r'<pre class="mermaid"><code>(.*?)</code></pre>', re.DOTALL)


def drawn(page: str) -> str:
    """A page with an SVG in the place of each Mermaid block."""
    for number, block in enumerate(dict.fromkeys(_BLOCK.findall(page))):
        svg = mermaidx.render(html.unescape(block)).svg().replace("my-svg", f"diagram-{number}")
        figure = f'<div class="diagram">{svg}</div>'
        page = page.replace(f'<pre class="mermaid"><code>{block}</code></pre>', figure)
    return page
