"""The site: whole, written from the code, and shown without a network on phones and desktops, light and dark."""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from chromium import DARK, LIGHT, dom, show

from llmconv import Registry
from llmconv.plugins.listing import listed
from llmconv.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
CORE = ROOT / "llmconv"
PROBE = "parent.postMessage(document.documentElement.scrollWidth + ' of ' + innerWidth, '*')"
LISTEN = "onmessage = event => { document.body.dataset.seen = event.data }"
WIDE = ["architecture", "quantization", "figures", "plugins", "reference/ops", "reference/python/llmconv.graph"]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def text_of(site: Path, page: str) -> str:
    """What a page says, without markup; signatures and code are cut into words by it."""
    html = (site / page / "index.html").read_text(encoding="utf-8")
    return unescape(re.sub(r"<[^>]+>", "", html))


def loaded(html: str) -> Iterator[str]:
    """What a browser fetches for a page by itself; links that a reader follows are not among it."""
    yield from re.findall(r"<(?:script|img|iframe|source|embed|object)[^>]*?\s(?:src|data)=[\"']?([^\"'\s>]+)", html)
    for link in re.findall(r"<link[^>]+>", html):
        if not re.search(r"rel=[\"']?(?:canonical|next|prev)", link):
            yield from re.findall(r"href=[\"']?([^\"'\s>]+)", link)


def test_every_page_of_docs_is_built(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / page.stem / "index.html").is_file()


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        html = page.read_text(encoding="utf-8")
        found = list(loaded(html))
        assert any("javascripts" in name for name in found)
        assert not [name for name in found if re.match(r"(?:https?:)?//", name)]
        assert 'class="mermaid"' not in html  # for which the theme would fetch what draws it
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8"))


def test_the_picture_of_the_house_is_drawn(site: Path) -> None:
    html = (site / "architecture" / "index.html").read_text(encoding="utf-8")
    drawn = re.sub(r"<[^>]+>", " ", html.partition("<svg id=")[2].partition("</svg>")[0])
    assert {"graph", "passes", "apply_recipe", "cli"} <= set(drawn.split())


ROOMS = [".".join(stub.parent.relative_to(ROOT).parts) for stub in sorted(CORE.rglob("__init__.pyi"))] + [
    "llmconv.files",
    "llmconv.target",
]


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_those_documented(site: Path, room: str) -> None:
    html = (site / "reference" / "python" / room / "index.html").read_text(encoding="utf-8")
    headings = re.findall(rf'<h2 id="{re.escape(room)}\.(\w+)" class="doc', html)
    assert sorted(headings) == sorted(importlib.import_module(room).__all__)


def test_every_plugin_and_option_of_llmconv_is_there(site: Path, registry: Registry) -> None:
    text = text_of(site, "reference/plugins")
    html = (site / "reference" / "plugins" / "index.html").read_text(encoding="utf-8")
    own = next(one for one in listed(registry) if one.distribution == "llmconv")
    for found in own.brings:
        if found.kind in ("family", "lowering", "chipset"):
            continue
        assert re.search(rf'<h3 id="{found.name}(?:_\d+)?">', html)
        for option in found.options:
            assert f"<dt><code>{option.name}</code></dt>" in html
            assert " ".join(option.help.replace("`", "").split())[1:] in " ".join(text.split())


def test_every_op_family_and_chipset_is_there(site: Path, registry: Registry) -> None:
    ops, families = text_of(site, "reference/ops"), text_of(site, "reference/families")
    assert all(str(op) in ops for op in registry.lowerings)
    assert all(kind in families for _, family in registry.registered_families for kind in family.types)
    assert all(chip.model in text_of(site, "reference/chipsets") for chip in registry.chipsets)


def test_every_section_and_key_of_a_recipe_is_there(site: Path) -> None:
    html = (site / "reference" / "recipe" / "index.html").read_text(encoding="utf-8")
    for name, field in Recipe.model_fields.items():
        assert re.search(rf"<h2[^>]*><code>\[*{name}(?:\.NAME)?\]*</code>", html)
        for key in getattr(field.annotation, "model_fields", {}):
            assert f"<code>{key}</code>" in html


def test_every_command_is_there_and_a_plugins(site: Path) -> None:
    html = (site / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    found = re.findall(r'<h2 id="[^"]+">llmconv ([\w -]+)<', html)
    assert {"apply", "convert", "recipe check", "hub jobs", "new-plugin"} <= set(found)
    assert "<dt><code>--allow-local-plugins</code></dt>" in html
    assert "build/&lt;recipe&gt;" in html


def quoted() -> list[str]:
    return re.findall(r"^`(.+)`\n:", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("words", quoted())
def test_troubleshooting_quotes_messages_that_there_are(site: Path, words: str) -> None:
    assert " ".join(words.split()) in " ".join(text_of(site, "reference/messages").split())


def test_messages_of_today_are_collected(site: Path) -> None:
    text = " ".join(text_of(site, "reference/messages").split())
    for part in ("tensor '{name}' holds NaN or infinity", "no such recipe; 'llmconv recipe list'", "--jobs 1"):
        assert part in text


def test_readme_and_examples_link_to_pages_of_the_site(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="examples/#scale_queries"' in home
    assert 'href="recipes/#a-recipe-that-is-chosen"' in home
    assert "docs/" not in re.sub(r"<code>.*?</code>|<pre.*?</pre>|<a [^>]*href=\"[^\"]*\"", "", home, flags=re.DOTALL)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("size", [(412, 900), (1280, 900)])
def test_pages_are_shown_without_a_complaint(site: Path, tmp_path: Path, size: tuple[int, int], scheme: int) -> None:
    for page in ("architecture", "reference/python/llmconv.passes"):
        shown = show(site / page / "index.html", tmp_path, size, scheme)
        assert shown.console == []
        assert shown.lines > 100


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("page", WIDE)
def test_wide_pages_do_not_scroll_sideways(site: Path, tmp_path: Path, page: str, width: int) -> None:
    copy = tmp_path / "site"
    shutil.copytree(site / "assets", copy / "assets")
    shutil.copy(site / "site.css", copy)
    (copy / page).mkdir(parents=True)
    text = (site / page / "index.html").read_text(encoding="utf-8")
    (copy / page / "index.html").write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"))
    inner = f"<iframe src='{page}/index.html' width='{width}' height='800' style='border: 0'></iframe>"
    (copy / "outer.html").write_text(f"<!doctype html><body><script>{LISTEN}</script>{inner}")
    assert f'data-seen="{width} of {width}"' in dom(copy / "outer.html", tmp_path)
