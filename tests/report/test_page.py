"""report.html in a browser: whole, quiet, readable on a phone, and nothing of a recipe becomes markup."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from chromium import DARK, LIGHT, dom, show

from llmconv import Bundle
from llmconv.bundle.bundle import MANIFEST, PAGE, REPORT
from llmconv.report import page

PROBE = "parent.postMessage(document.documentElement.scrollWidth + ' of ' + innerWidth, '*')"
LISTEN = "onmessage = event => { document.body.dataset.seen = event.data }"
EVIL = "<script>document.title = 'taken'</script>\"'&"


def variant(bundle: Bundle, folder: Path, manifest: dict[str, Any], report: dict[str, Any]) -> Path:
    """A page of the bundle with other content."""
    (folder / MANIFEST).write_text(json.dumps({**bundle.manifest, **manifest}))
    (folder / REPORT).write_text(json.dumps({**bundle.report, **report}))
    page.write(Bundle(folder))
    return folder / PAGE


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("size", [(360, 800), (1280, 900)])
def test_page_is_shown_without_a_complaint(
    small_bundle: Bundle, tmp_path: Path, size: tuple[int, int], scheme: int
) -> None:
    shown = show(small_bundle.folder / PAGE, tmp_path, size, scheme)
    assert shown.console == []
    assert shown.size == size
    assert shown.lines > 100
    assert (min(shown.corner) > 200) == (scheme == LIGHT)
    assert (max(shown.corner) < 60) == (scheme == DARK)


def test_a_blank_page_and_a_complaint_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text("<!doctype html><title>x</title><script>console.error('oh')</script>")
    shown = show(tmp_path / "bad.html", tmp_path, (360, 800))
    assert len(shown.console) == 1
    assert "oh" in shown.console[0]
    assert shown.lines < 10


@pytest.mark.parametrize("width", [360, 1280])
def test_page_does_not_scroll_sideways_even_with_its_details_open(
    small_bundle: Bundle, tmp_path: Path, width: int
) -> None:
    text = (small_bundle.folder / PAGE).read_text().replace("<details>", "<details open>")
    (tmp_path / PAGE).write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"))
    outer = f"<iframe src='{PAGE}' width='{width}' height='800' style='border: 0'></iframe>"  # windows are wider
    (tmp_path / "outer.html").write_text(f"<!doctype html><body><script>{LISTEN}</script>{outer}")
    assert f'data-seen="{width} of {width}"' in dom(tmp_path / "outer.html", tmp_path)


def test_page_holds_the_figures(small_bundle: Bundle, tmp_path: Path) -> None:
    seen = dom(small_bundle.folder / PAGE, tmp_path)
    report = small_bundle.report
    assert f"{report['perplexity']['quantized']:.3f}" in seen
    for check in report["proof"]:
        assert check["name"] in seen
    for text in ("split_heads", "layers 1 to 2", "hidden_state_1", "passes", "67.2 GB/s", "SQNR of activations"):
        assert text in seen
    assert "Latency on a device" not in seen


def test_page_is_accessible_in_its_structure(small_bundle: Bundle) -> None:
    text = (small_bundle.folder / PAGE).read_text()
    assert text.count("<h1>") == 1
    assert text.count("<table>") == text.count("<caption>") > 8
    pictures = text.split("<svg")[1:]
    assert len(pictures) == 5  # parts, weights, activations, and the simulator's two graphs
    assert all("<title id=" in p and "<desc id=" in p for p in pictures)
    assert 'lang="en"' in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


def test_page_needs_no_network(small_bundle: Bundle) -> None:
    text = (small_bundle.folder / PAGE).read_text()
    assert not re.search(r"https?:|//\w|@import|url\(|<script|<link|<img|<iframe", text)


def test_nothing_of_a_recipe_or_a_checkpoint_becomes_markup(small_bundle: Bundle, tmp_path: Path) -> None:
    recipe = copy.deepcopy(small_bundle.manifest["recipe"])
    recipe["name"] = EVIL
    recipe["passes"][0]["logits"] = EVIL
    report = copy.deepcopy(small_bundle.report)
    report["proof"][0]["name"] = EVIL
    report["weights"][EVIL] = {"part": 0, "bits": 4, "bytes": 1, "sqnr": 1.0}
    file = variant(small_bundle, tmp_path, {"recipe": recipe}, report)
    assert "<script" not in file.read_text()
    assert "document.title = 'taken'" in dom(file, tmp_path)
    assert "<title>taken" not in dom(file, tmp_path)
    assert show(file, tmp_path, (1280, 900)).console == []


def row(**others: str) -> dict[str, str]:
    return {"Device": "S23", "Inference Time": "4.2 ms", "Job": "https://example.com/jobs/1", **others}


def test_measured_latency_is_shown_with_its_link(small_bundle: Bundle, tmp_path: Path) -> None:
    rows = [row(Graph="token_ar1"), row(Job="javascript:alert(1)")]
    profile = {
        "source": "measured by a service",
        "rows": rows,
        "time_per_token_ms": 8.4,
        "time_to_first_token_ms": None,
    }
    text = variant(small_bundle, tmp_path, {}, {"profile": profile}).read_text()
    assert re.search(r'Latency on a device <span class="basis"><span class="measured">', text)
    assert '<a href="https://example.com/jobs/1" rel="noreferrer">' in text
    assert 'href="javascript' not in text
    assert "Primary Compute Unit" not in text  # nobody gave one
    assert "Time a token, the sum over the parts: 8.400 ms." in text
    assert "first token" not in text


def test_outputs_of_a_device_are_shown_beside_their_reference(small_bundle: Bundle, tmp_path: Path) -> None:
    found = {"SQNR": {"logits": "51.0 dB", "keys and values": "equal"}, "KV off": "0.120%"}
    text = variant(small_bundle, tmp_path, {}, {"inference": [row(Graph="token_ar1") | found]}).read_text()
    assert re.search(r'Outputs on a device <span class="basis"><span class="measured">', text)
    assert "logits 51.0 dB, keys and values equal" in text


def test_a_failed_check_stands_out(small_bundle: Bundle, tmp_path: Path) -> None:
    report = copy.deepcopy(small_bundle.report)
    report["proof"][0]["passed"] = False
    text = variant(small_bundle, tmp_path, {}, report).read_text()
    assert '<td class="text failed">FAILED</td>' in text
    assert "checks of its proof hold: see the proof" in text


def test_bundle_that_was_not_proved_says_so(small_bundle: Bundle, tmp_path: Path) -> None:
    report = {"proof": [], "precision": {}, "perplexity": {}, "weights": {}}
    text = variant(small_bundle, tmp_path, {}, report).read_text()
    assert "It was not proved" in text
    assert 'id="precision"' not in text


def test_page_is_not_among_the_files_that_are_checked(small_bundle: Bundle) -> None:
    assert PAGE not in small_bundle.manifest["files"]
    small_bundle.check_files()
