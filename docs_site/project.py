"""Pages that lie outside docs/, with their links turned to the site's own: README, changes, figures, examples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "figures.md",
}


def pages() -> dict[str, str]:
    """Path in the site -> Markdown."""
    read = {page: on_site((ROOT / file).read_text(encoding="utf-8")) for file, page in PAGES.items()}
    return {**read, "examples.md": examples()}


def on_site(text: str) -> str:
    """Markdown whose links to files of the repository go to the site's pages; MkDocs refuses those that have none."""
    return re.sub(r"\[([^\]]*)\]\(([^)#:]+)(#[^)]*)?\)", _link, text)


def _link(match: re.Match[str]) -> str:
    said, target, anchor = match[1], match[2], match[3] or ""
    if target.startswith("examples/"):
        return f"[{said}](examples.md#{Path(target).name.replace('.', '')})"
    if said == target:  # a file's name, which tells a reader of the site nothing
        said = _title(ROOT / target)
    return f"[{said}]({PAGES.get(target, target.removeprefix('docs/'))}{anchor})"


def linked(text: str, page: str) -> str:
    """Markdown in which `examples/NAME` is a link to that example's code, and links say the titles of pages."""
    text = re.sub(r"\[([\w]+\.md)\]\(\1", lambda match: f"[{_title(ROOT / 'docs' / match[1])}]({match[1]}", text)
    if page == "examples.md":
        return text
    up = "../" * page.count("/")
    return re.sub(r"(?<!\[)`examples/(\w+)`", rf"[`examples/\1`]({up}examples.md#\1)", text)


def _title(file: Path) -> str:
    return file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def examples() -> str:
    """Every example with its code, and its test where it has one of its own."""
    lines = ["# Examples", "", "Each is a whole plugin, or a program; tests execute all of them."]
    for path in sorted((ROOT / "examples").iterdir()):
        files = sorted(path.glob("*.py"), key=lambda file: file.name.startswith("test_"))  # its test behind it
        if path.suffix == ".py" and path.name != "conftest.py":
            files = [path]
        if path.suffix == ".ipynb":
            lines += ["", f"## {path.name}", "", f"`examples/{path.name}`", *_cells(path)]
        if not files:
            continue
        lines += ["", f"## {path.name}"]
        for file in files:
            lines += ["", f"`examples/{file.relative_to(ROOT / 'examples').as_posix()}`", ""]
            lines += ["````python", file.read_text(encoding="utf-8").rstrip(), "````"]
    return "\n".join(lines) + "\n"


def _cells(notebook: Path) -> Iterator[str]:
    """What a notebook says and does; its headings go below that of its name."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield from ("", re.sub(r"^#+", "###", text, flags=re.MULTILINE))
        else:
            yield from ("", "```python", text, "```")
