"""A plugin is begun by an example under another name; it installs, its test passes, and a recipe may name it."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmconv import LlmconvError
from llmconv.cli.main import app
from llmconv.scaffold.new_plugin import EXAMPLES, examples, new_plugin


@pytest.mark.parametrize("kind", EXAMPLES)
def test_is_the_example_under_another_name(kind: str, tmp_path: Path) -> None:
    example, mine = EXAMPLES[kind], f"my_{kind.replace('-', '_')}"
    files = new_plugin(kind, f"my-{kind}", tmp_path)
    module = (tmp_path / f"my-{kind}" / f"llmconv_{mine}.py").read_text()
    assert (_class(mine) in module) == (kind != "recipes")  # which are no class
    back = module.replace(mine, example).replace(_class(mine), _class(example))
    assert back == (examples() / example / f"llmconv_{example}.py").read_text()
    names = {str(file.relative_to(tmp_path / f"my-{kind}")) for file in files}
    both = {f"llmconv_{mine}.py", f"test_{mine}.py"}
    both |= {"my_recipes/my_recipes.toml"} if kind == "recipes" else set()
    assert names == {*both, "pyproject.toml", "README.md", ".github/workflows/test.yml"}
    assert not [file for file in files if example in file.read_text() or _class(example) in file.read_text()]
    if kind != "source":  # which has a model of its own in it
        assert len([line for line in module.splitlines() if line.strip()]) <= 40


def _class(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My-pass", "'My-pass': a plugin's name is of lower-case words"),
        ("../up", "'../up': a plugin's name"),
        ("rewrite-pass", "'rewrite-pass': the module has a 'RewritePass' already; choose another name"),
        ("there", "there: exists; choose another name, or remove it"),
    ],
)
def test_what_cannot_be_a_name_is_said_and_nothing_is_written(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(LlmconvError) as caught:
        new_plugin("pass", name, tmp_path)
    assert said in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_command_writes_into_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["new-plugin", "mine", "--evaluator"])
    assert result.exit_code == 0
    assert "mine/llmconv_mine.py" in result.stdout
    assert "register_evaluators" in (tmp_path / "mine" / "llmconv_mine.py").read_text()
    with pytest.raises(LlmconvError, match="--pass and --source: a plugin begins with one kind"):
        CliRunner().invoke(app, ["new-plugin", "both", "--pass", "--source"], catch_exceptions=False)


RECIPE = """
[model]
checkpoint = "model"
[target]
name = "Snapdragon 8 Gen 3"
[graphs.prompt]
ar = 8
context = 16
[graphs.token]
ar = 1
context = 16
[[passes]]
name = "kv_cache_io"
[[passes]]
name = "my_pass"
[[passes]]
name = "my_lowering"
[[passes]]
name = "decompose"
[[passes]]
name = "linear_to_conv"
[[passes]]
name = "w4a16"
quantizer = "my_quantizer"
scheme = "my_scheme"
[[onnx_passes]]
name = "my_onnx_pass"
[calibration]
text = "text.txt"
samples = 2
tokens = 16
[backend]
name = "my_backend"
"""
WRITE = """
from pathlib import Path
from llmconv_my_family import MyFamily
from llmconv.recipe import shipped
from llmconv.testing import tiny_checkpoint
tiny_checkpoint(Path("model"), MyFamily)
Path("text.txt").write_text((shipped.folder() / "tiny_llama" / "heldout.txt").read_text()[:400])
"""


@pytest.mark.slow
def test_every_kind_installs_passes_its_test_and_works_in_one_recipe(tmp_path: Path) -> None:
    """In a fresh environment, over the packages of this one."""
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "base.pth").write_text("\n".join(path for path in sys.path if Path(path).is_dir()))
    python = tmp_path / "venv" / "bin" / "python"

    def run(*command: object) -> str:
        done = subprocess.run([python, *map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + (done.stderr if "--verbose" in command else "")

    wheels = tmp_path / "wheels"
    folders = []
    for kind in EXAMPLES:
        new_plugin(kind, f"my-{kind}", tmp_path)
        folders.append(tmp_path / f"my-{kind}")
    run("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheels, *folders)
    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, *sorted(wheels.glob("*.whl")))
    tried = [folder for folder in folders if folder.name != "my-backend"]  # which the recipe below tries as well
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", *tried)
    (tmp_path / "mine.toml").write_text(RECIPE)
    run("-c", WRITE)
    said = run("-m", "llmconv", "--verbose", "apply", "mine.toml", "--output", "out", "--no-verify")
    assert re.search(r"my_pass: \d+ nodes became \d+", said)  # my_observer is told of it
    assert "my_backend" in (tmp_path / "out" / "manifest.json").read_text()
    plugins = (tmp_path / "out" / "manifest.json").read_text()
    for kind in ("pass", "family", "quantizer", "backend", "lowering", "onnx-pass", "scheme"):
        assert f'"llmconv-my-{kind}": "1.0"' in plugins
    assert "\nmy_recipes " in run("-m", "llmconv", "recipe", "list")
    measured = run("-m", "llmconv", "eval", "out", "--tasks", "my_evaluator", "--on", "float", "--text", "text.txt")
    assert "share" in measured
