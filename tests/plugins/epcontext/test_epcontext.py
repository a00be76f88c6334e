"""The folder for laptops: files that stand alone, graphs that are the binaries', and the simulator's own text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from converting import convert

from llmconv import Bundle, BundleError, Registry, Sampling
from llmconv.chat.session import open_session
from llmconv.cli import main
from llmconv_plugins.epcontext.exporter import EPContext, check
from llmconv_plugins.qnn.context_binary import read_info
from llmconv_plugins.qnn.simulator import Simulator

QUESTION = "Return the first number of the list."
BESIDE = {"model.json", "host.npz", "run.py", "requirements.txt", "tokenizer.json", "tokenizer_config.json"}


def export(bundle: Bundle, folder: Path) -> Path:
    """The exported folder alone, at another place."""
    shutil.copytree(bundle.folder, folder / "bundle")
    made = EPContext().export(Bundle(folder / "bundle"), Registry.load(), lambda *_: None)
    made.rename(folder / "copied")
    shutil.rmtree(folder / "bundle")
    return folder / "copied"


@pytest.fixture(scope="module")
def exported(small_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(small_bundle, tmp_path_factory.mktemp("exported"))


def said_by_the_script(folder: Path, question: str) -> str:
    """What `run.py` writes; native code writes to the same place before."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, folder / "run.py", question]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def said_by_the_simulator(bundle: Bundle, question: str) -> str:
    with open_session(bundle, "qnn", Sampling(), Registry.load()) as session:
        prompt, _ = session.prompt()
        ids = prompt.ids([{"role": "user", "content": question}])
        written = [i for i in session.dialog.query(ids, 2000) if i not in session.config.eos]
    assert len(written) > 10
    return session.tokenizer.decode([*ids, *written])[len(session.tokenizer.decode(ids)) :]


def test_the_script_answers_as_the_simulator_does(small_bundle: Bundle, exported: Path) -> None:
    """Alone in its folder, through onnxruntime-qnn, up to the end of the context."""
    assert said_by_the_script(exported, QUESTION).endswith(said_by_the_simulator(small_bundle, QUESTION) + "\n")


@pytest.mark.slow
def test_a_prompt_graph_without_past(small_published: Bundle, tmp_path: Path) -> None:
    wanted = said_by_the_simulator(small_published, QUESTION)
    assert said_by_the_script(export(small_published, tmp_path), QUESTION).endswith(wanted + "\n")


@pytest.mark.slow
def test_a_text_that_crosses_from_one_context_to_the_next(small_recipe: Path, tmp_path: Path) -> None:
    convert(small_recipe, tmp_path / "two", "graphs={ar = [1, 16], context = [64, 128]}", verify=False)
    bundle = Bundle(tmp_path / "two")
    wanted = said_by_the_simulator(bundle, QUESTION)
    assert said_by_the_script(export(bundle, tmp_path), QUESTION).endswith(wanted + "\n")


def test_every_file_is_one_node_over_a_graph_of_the_binary_beside_it(small_bundle: Bundle, exported: Path) -> None:
    labels = {part.label for graph in small_bundle.graphs.values() for part in graph.parts}
    for folder, binaries in ((exported, {"part_1_of_2.bin", "part_2_of_2.bin"}), (exported / "simulator", None)):
        assert {file.stem for file in folder.glob("*.onnx")} == labels
        assert {file.name for file in folder.glob("*.bin")} == (binaries or {f"{label}.bin" for label in labels})
        graphs = {g.name: g for file in folder.glob("*.bin") for g in read_info(file).graphs}
        for file in folder.glob("*.onnx"):
            model = onnx.load(file)
            (node,) = model.graph.node
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            assert (node.op_type, node.domain, attributes["embed_mode"]) == ("EPContext", "com.microsoft", 0)
            graph = graphs[attributes["partition_name"].decode()]
            named = folder / attributes["ep_cache_context"].decode()
            assert (graph.name, node.name) == (file.stem, file.stem)
            assert graph in read_info(named).graphs
            for values, tensors in ((model.graph.input, graph.inputs), (model.graph.output, graph.outputs)):
                found = {
                    v.name: (v.type.tensor_type.elem_type, tuple(d.dim_value for d in v.type.tensor_type.shape.dim))
                    for v in values
                }
                kinds = {t.name: onnx.helper.np_dtype_to_tensor_dtype(np.dtype(t.dtype)) for t in tensors}
                assert found == {t.name: (kinds[t.name], t.shape) for t in tensors}


@pytest.mark.slow
def test_the_npus_own_files_run_here_where_no_graphs_share_weights(small_recipe: Path, tmp_path: Path) -> None:
    """The simulator loads no binaries with shared weights; one graph alone shares none."""
    convert(small_recipe, tmp_path / "one", "graphs={token = {ar = 1, context = 128}}", verify=False)
    bundle = Bundle(tmp_path / "one")
    folder = export(bundle, tmp_path)
    labels = [part.label for part in bundle.graphs["token"].parts]
    rng = np.random.default_rng(0)
    with (
        Simulator({label: folder / f"{label}.onnx" for label in labels}) as npu,
        Simulator({label: folder / "simulator" / f"{label}.onnx" for label in labels}) as twins,
    ):
        for label, part in zip(labels, bundle.graphs["token"].parts, strict=True):
            given = {t.name: rng.integers(0, 200, t.shape).astype(t.dtype) for t in part.inputs}
            found, wanted = npu.run(label, given), twins.run(label, given)
            assert {name: value.dtype for name, value in found.items()} == {t.name: t.dtype for t in part.outputs}
            for name, value in found.items():
                np.testing.assert_array_equal(value, wanted[name], name)


def test_the_command_writes_the_folder(
    small_bundle: Bundle, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_bundle.folder, tmp_path / "b")
    monkeypatch.setattr(sys, "argv", ["llmconv", "export", str(tmp_path / "b"), "--to", "epcontext"])
    with pytest.raises(SystemExit, match="0"):
        main()
    made = tmp_path / "b" / "epcontext"
    names = {str(file.relative_to(exported)) for file in exported.rglob("*")}
    assert {str(file.relative_to(made)) for file in made.rglob("*")} == names
    assert names >= BESIDE
    assert (made / "part_1_of_2.bin").samefile(tmp_path / "b" / "qnn" / "part_1_of_2.bin")
    assert (
        f"onnxruntime-qnn>={small_bundle.manifest['versions']['onnxruntime-qnn']}"
        in (made / "requirements.txt").read_text()
    )
    assert (made / "host.npz").read_bytes() == (exported / "host.npz").read_bytes()


def test_without_twins_there_is_nothing_for_the_simulator(small_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(small_bundle.folder, tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    manifest["binaries"] = [b for b in manifest["binaries"] if not b["simulator"]]
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    folder = EPContext().export(Bundle(tmp_path / "b"), Registry.load(), lambda *_: None)
    assert not (folder / "simulator").exists()
    assert len(list(folder.glob("*.onnx"))) == 4


def test_bundles_that_the_script_cannot_run(small_bundle: Bundle, small_onnx: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no genie_config\.json \(it has no binaries; convert with backend qnn\)"):
        check(small_onnx)
    bundle = Bundle(small_bundle.folder)
    last = {"kind": "logits", "shape": [1, 1, 2048]}
    for graph in bundle.manifest["graphs"]:
        outputs = graph["parts"][-1]["outputs"]
        graph["parts"][-1]["outputs"] = [{**t, **(last if t["kind"] == "logits" else {})} for t in outputs]
    with pytest.raises(BundleError, match=r'logits of the last row alone; convert with kv_cache_io\.logits = "all"'):
        check(bundle)
