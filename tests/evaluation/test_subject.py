"""What a proof takes for the checkpoint: nothing else than what was converted."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoint import write_recipe

from llmconv import Bundle, CheckpointError, Recipe, Registry
from llmconv.bundle import GraphSpec, PartSpec, TensorSpec
from llmconv.bundle.bundle import FORMAT
from llmconv.evaluation.subject import ConvertedWeights, Subject
from llmconv.files import digest, write_json
from llmconv.weights import DictStore

FILES = ("config.json", "tokenizer.model")


class Hashed(DictStore):
    """Weights in memory that are hashed as a file's are."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__(tensors)
        self.hashes: dict[str, str] = {}

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        if rows is None:
            self.hashes[name] = hashlib.sha256(self.tensors[name].numpy().data).hexdigest()
        return super().read(name, rows)

    def sha256(self, name: str) -> str | None:
        return self.hashes.get(name)


def hashes_of(**tensors: torch.Tensor) -> dict[str, str]:
    store = Hashed(**tensors)
    for name in tensors:
        store.read(name)
    return store.hashes


A, B = torch.arange(6.0).view(3, 2), torch.ones(2)


def test_weights_that_were_converted_are_read() -> None:
    store = ConvertedWeights(Hashed(a=A, b=B), hashes_of(a=A, b=B), Path("ck"))
    assert store.shape("a") == (3, 2)
    assert torch.equal(store.read("a"), A)
    assert torch.equal(store.read("b", slice(1, 2)), B[1:])


@pytest.mark.parametrize("rows", [None, slice(0, 1)])
def test_another_weight_is_refused_before_it_is_used(rows: slice | None) -> None:
    store = ConvertedWeights(Hashed(a=A + 1, b=B), hashes_of(a=A, b=B), Path("ck"))
    assert torch.equal(store.read("b"), B)
    with pytest.raises(CheckpointError, match=r"^ck: tensor 'a' is not what the bundle was converted from; "):
        store.read("a", rows)


@pytest.mark.parametrize(("sha256", "refused"), [("a", False), ("b", True)])
def test_tensors_that_another_process_read_are_held_to_what_was_converted(sha256: str, refused: bool) -> None:
    manifest = {"source": {"weights": {"w": "a"}}}
    subject = Subject(SimpleNamespace(manifest=manifest), Registry(), lambda _stage, _item: None)  # type: ignore[arg-type]
    subject.recipe = SimpleNamespace(model=SimpleNamespace(checkpoint=Path("ck")))  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="ck: tensor 'w' is not what") if refused else nullcontext():
        subject.check_converted({"w": sha256, "unknown": "c"})


def test_weights_without_hashes_cannot_be_compared() -> None:
    assert torch.equal(ConvertedWeights(DictStore({"a": A}), hashes_of(a=B), Path("ck")).read("a"), A)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_recipe(tmp_path).parent / "tiny_llama"


@pytest.fixture
def subject(checkpoint: Path, tmp_path: Path) -> Subject:
    """A bundle of the small recipe, as far as the checkpoint goes; in float, so that nothing need be calibrated."""
    folder, structural = tmp_path / "bundle", ("kv_cache_io", "decompose")
    recipe = Recipe.load(checkpoint.parent / "small.toml", ["model.source='decoder'"])  # as manifests name it
    recipe = recipe.model_copy(update={"passes": [p for p in recipe.passes if p.name in structural]})
    (folder / "source").mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(checkpoint / name, folder / "source" / name)
    hashes = {name: hashlib.sha256(t.numpy().data).hexdigest() for name, t in tensors_of(checkpoint).items()}
    weights = {key: sha for name, sha in hashes.items() for key in (name, name.removeprefix("model."))}
    source = {"description": {name: digest(checkpoint / name) for name in FILES}, "weights": weights}
    manifest = {"format": FORMAT, "recipe": recipe.to_dict(), "source": source, "graphs": [], "files": {}}
    write_json(folder / "manifest.json", manifest)
    return Subject(Bundle(folder), Registry.load(), lambda _stage, _item: None)


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def test_checkpoint_as_it_was(subject: Subject) -> None:
    assert subject.checkpoint is not None
    assert [p.name for p in subject.checkpoint.passes] == ["kv_cache_io", "decompose"]
    assert subject.weights.read("norm.weight").shape == (16,)


def test_missing_folder_is_gone(subject: Subject, checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    assert subject.checkpoint is None
    assert subject.gone == f"not run: the checkpoint {checkpoint} is gone"


def truncate(checkpoint: Path) -> None:
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.truncate((checkpoint / "model.safetensors").stat().st_size - 1000)


def other_weights(checkpoint: Path) -> None:
    save_file({name: t * 2 for name, t in tensors_of(checkpoint).items()}, checkpoint / "model.safetensors")


def edit_config(checkpoint: Path) -> None:
    config = checkpoint / "config.json"
    config.write_text(config.read_text().replace('"rope_theta": 10000', '"rope_theta": 20000') + "\n")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "truncated"),
        (other_weights, "norm.weight' is not what the bundle was converted from"),
        (edit_config, "config.json is not what the bundle was converted from"),
        (lambda checkpoint: (checkpoint / "config.json").write_text("{"), "config.json"),
        (lambda checkpoint: (checkpoint / "config.json").unlink(), "config.json"),
        (lambda checkpoint: (checkpoint / "model.safetensors").unlink(), "safetensors"),
    ],
)
def test_damaged_or_other_checkpoint_is_refused(subject: Subject, checkpoint: Path, damage: object, said: str) -> None:
    damage(checkpoint)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=said):
        subject.weights.read("norm.weight")


@pytest.mark.parametrize(
    ("text", "rows", "why"),
    [
        ("held-out", 8, None),
        ("held-out", 1, "not run: graph 'prompt' gives the last row of its logits alone"),
        (None, 8, "not run: verify.text names no held-out text"),
    ],
)
def test_perplexity_is_measured_where_there_is_text_and_a_row_for_each_token(
    text: str | None, rows: int, why: str | None
) -> None:
    def graph(name: str, ar: int, rows: int) -> GraphSpec:
        logits = TensorSpec("logits", (1, rows, 5), "uint16", "logits", None, None, None, None)
        return GraphSpec(name, ar, 16, (PartSpec(name, "file", (), (logits,)),))

    bundle = SimpleNamespace(graphs={"token": graph("token", 1, 1), "prompt": graph("prompt", 8, rows)})
    subject = Subject(bundle, Registry(), lambda *_: None)  # type: ignore[arg-type]
    subject.__dict__["described"] = SimpleNamespace(recipe=SimpleNamespace(verify=SimpleNamespace(text=text)))
    assert subject.unmeasured == why
