"""Checkpoints on the hub: what is downloaded, how often, and what is said when it cannot be."""

from __future__ import annotations

import json
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, serving

from llmconv import CheckpointError, Recipe, RecipeError, Registry, ResourceError
from llmconv.prepare.resolve import check, files_of
from llmconv.recipe import hub as hub_module
from llmconv.recipe.hub import HubId, brought, identify
from llmconv.recipe.located import located, named, pinned, title_of

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("huggingface_hub.file_download")  # and with it what is changed here

NEEDED = {"config.json", "tokenizer.json", "model.safetensors", "LICENSE", "README.md"}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
CONFIG = {
    "model_type": "llama",
    **dict.fromkeys(SIZES, 2),
    "vocab_size": 8,
    "hidden_size": 8,
    "max_position_embeddings": 64,
}
BESIDE = {"pytorch_model.bin": b"x" * 50, "onnx/model.onnx": b"x", "consolidated.00.pth": b"x", "image.png": b"x"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A repository with a tiny checkpoint, and much that is not needed; an empty cache."""
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": bytes(range(256)) * 400, **BESIDE}
    files |= {"tokenizer.json": b"{}", "LICENSE": b"free", "README.md": b"---\nlicense: mit\n---\n"}
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # between the library's own tries
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub_module._listing.cache_clear()
    with serving(Hub(files)) as running:
        _at(running.endpoint, monkeypatch)
        yield running


def _at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when the library is imported."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def bring(text: str = "hub:org/model", *, weights: bool = True) -> Path:
    hub_module._listing.cache_clear()  # as in a process of its own
    return brought(identify(text), files_of(Registry.load(), weights=weights))


def whole(folder: Path, hub: Hub, names: set[str] = NEEDED) -> bool:
    found = {f.name: f.read_bytes() for f in folder.iterdir()}
    return found == {name: hub.files[name] for name in names}


def test_only_what_is_needed_is_downloaded_and_once(hub: Hub) -> None:
    folder = bring(weights=False)
    assert whole(folder, hub, NEEDED - {"model.safetensors"})
    assert bring() == folder
    assert whole(folder, hub)
    assert folder.name == COMMIT
    bring()
    assert hub.sent == {name: len(hub.files[name]) for name in NEEDED}


def test_a_recipe_is_pinned_to_the_commit(hub: Hub) -> None:
    values = {
        "model": {"checkpoint": "hub:org/model"},
        "target": {"name": "SM8550"},
        "graphs": {"token": {"ar": 1, "context": 8}},
        "backend": {"name": "onnx"},
    }
    checked = check(Recipe.from_dict(values), Registry.load(), weights=False)
    assert str(checked.recipe.model.checkpoint) == f"hub:org/model@{COMMIT}"
    assert checked.config.layers == 2
    assert "model.safetensors" not in hub.sent


@pytest.mark.parametrize("cuts", [1, 3])
def test_a_file_that_is_cut_is_gone_on_with(hub: Hub, cuts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # the file is small
    hub.cut["model.safetensors"] = cuts
    assert whole(bring(), hub)
    assert hub.sent["model.safetensors"] < len(hub.files["model.safetensors"]) + cuts * 1024  # a chunk that was cut
    assert len(hub.ranges) == cuts


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_download_that_fails_is_one_line_and_goes_on_later(hub: Hub, status: int) -> None:
    hub.broken["model.safetensors"] = status
    with pytest.raises(CheckpointError, match=r"hub:org/model@0123.*model\.safetensors") as raised:
        bring()
    assert "\n" not in str(raised.value)
    hub.broken.clear()
    assert whole(bring(), hub)
    assert hub.sent == {name: len(hub.files[name]) for name in NEEDED}


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (
            401,
            {"X-Error-Code": "GatedRepo"},
            "its licence has to be accepted at https://huggingface.co/org/model; then",
        ),
        (403, {"X-Error-Code": "GatedRepo"}, "its licence has to be accepted"),
        (401, {"X-Error-Code": "RepoNotFound"}, "no model of that name on the hub, or a private one"),
        (403, {}, "the hub answers 403; set HF_TOKEN to a token that may read it"),
        (404, {"X-Error-Code": "RepoNotFound"}, "no model of that name on the hub"),
        (429, {"Retry-After": "0"}, "the hub answers 429; try again later"),
        (502, {}, "the hub answers 502; try again later"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub: Hub, status: int, headers: dict[str, str], message: str) -> None:
    hub.refuse = (status, headers)
    with pytest.raises(CheckpointError, match=f"hub:org/model: {message}") as raised:
        bring()
    assert "\n" not in str(raised.value)
    assert hub.sent == {}


def test_a_revision_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="hub:org/model@v9: it has no revision 'v9'"):
        bring("hub:org/model@v9")


def test_without_the_hub_the_cache_is_read(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bring()
    _at("http://127.0.0.1:9", monkeypatch)
    for text in ("hub:org/model", f"hub:org/model@{COMMIT}"):
        assert bring(text) == folder
        assert located(Path(text)) == folder  # which never asks


def test_offline_without_a_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"hub:org/model: not in the cache .*, and the hub cannot be asked"):
        bring()
    assert hub.sent == {}


def test_a_disk_without_room_is_said_before_a_byte_is_written(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda _: usage(100, 0, 100))
    with pytest.raises(ResourceError, match=r"to be downloaded, 0\.00 MB are free in .*; free some, or set HF_HOME"):
        bring()
    assert hub.sent == {}


def test_a_disk_that_fills_is_one_line_and_leaves_no_half_of_a_file(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["model.safetensors"] += b"0" * (1 << 20)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.file_download, "http_get", full)
        with pytest.raises(CheckpointError, match=r"download failed \(No space left on device\); the same"):
            bring()
    assert whole(bring(), hub)


def test_one_file_of_several_in_gguf(hub: Hub) -> None:
    hub.files = {"a.gguf": b"a", "b-00001-of-00002.gguf": b"b", "b-00002-of-00002.gguf": b"c", "README.md": b""}
    with pytest.raises(CheckpointError, match=r"2 GGUF checkpoints; name one, .*: a\.gguf, b-00001-of-00002\.gguf"):
        bring()
    found = bring("hub:org/model/b-00001-of-00002.gguf")
    assert found.name == "b-00001-of-00002.gguf"
    assert whole(found.parent, hub, set(hub.files) - {"a.gguf"})
    assert str(pinned(Path("hub:org/model/b-00001-of-00002.gguf"), found)).endswith(f"of-00002.gguf@{COMMIT}")


def test_a_repository_without_a_checkpoint(hub: Hub) -> None:
    hub.files = {"README.md": b"", "image.png": b""}
    with pytest.raises(CheckpointError, match="none of its 2 files is a checkpoint"):
        bring()


def test_ids() -> None:
    assert HubId.parse("org/name") == HubId("org/name")
    assert str(identify("hub:org/name/x.gguf@v1")) == "hub:org/name/x.gguf@v1"
    for text in ("name", "./org/name", "/org/name", "a/b/../c@", "org/name@"):
        found = HubId.parse(text)
        assert found is None or ".." in found.file
    with pytest.raises(RecipeError, match="write 'hub:name' as hub:ORG/NAME"):
        located(Path("hub:name"))
    assert title_of(Path("hub:org/Name-1B@v1")) == "Name-1B"
    assert title_of(Path("hub:org/name/Name-Q4.gguf")) == "Name-Q4"


def test_a_folder_wins_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named("org/model") == ("hub:org/model", "org/model: nothing of that name is here; read as hub:org/model")
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert named("org/model") == (
        str(tmp_path / "org" / "model"),
        "org/model: the one here is read, not hub:org/model",
    )
    with pytest.raises(RecipeError, match="nothing: no such file or folder"):
        named("nothing")
