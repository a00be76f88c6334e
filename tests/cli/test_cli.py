"""Commands as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import typer

from llmconv import Bundle
from llmconv.cli import main
from llmconv.cli.bundles import _exit_by


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["llmconv", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return Outcome(int(left.value.code or 0), captured.out, captured.err)

    return call


@pytest.mark.parametrize(
    ("command", "shown"), [((), "generate"), (("eval",), "--windows"), (("sensitivity",), "--budget")]
)
def test_help_imports_no_torch(command: tuple[str, ...], shown: str) -> None:
    script = f"import sys; sys.argv = {['llmconv', *command, '--help']}\nfrom llmconv.cli import main\n"
    script += "try:\n    main()\nexcept SystemExit:\n    print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_module_runs_as_the_command_does() -> None:
    done = subprocess.run([sys.executable, "-m", "llmconv", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.1.0"


def test_threads_that_wait_leave_their_cores_to_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    run("targets")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"  # as its user has it
    monkeypatch.delenv("OMP_WAIT_POLICY")
    run("targets")
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_passes_and_their_distribution(run: Run) -> None:
    outcome = run("passes")
    assert outcome.code == 0
    for name in ("kv_cache_io", "split_heads", "linear_to_conv", "w4a16", "decoder", "qnn", "onnxruntime"):
        assert name in outcome.out
    assert "llmconv 0.1.0" in outcome.out


def test_targets_and_their_devices(run: Run) -> None:
    outcome = run("targets")
    assert outcome.code == 0
    assert "SM8550" in outcome.out
    assert "v73" in outcome.out
    assert "Ultra" in outcome.out


def test_recipe_commands(run: Run, tmp_path: Path, small_recipe: Path) -> None:
    assert "tiny_llama" in run("recipe", "list").out
    assert run("recipe", "copy", "tiny_llama", tmp_path).code == 0
    assert (tmp_path / "tiny_llama" / "model.safetensors").is_file()
    again = run("recipe", "copy", "tiny_llama", tmp_path)
    assert (again.code, "exists" in again.err) == (2, True)
    checked = run("recipe", "check", tmp_path / "tiny_llama.toml")
    assert (checked.code, "4 layers" in checked.out) == (0, True)
    schema = json.loads(run("recipe", "schema").out)
    assert {p["title"] for p in schema["properties"]["passes"]["items"]["oneOf"]} >= {"split_heads", "w4a16"}


def test_apply_writes_a_bundle_and_says_so(run: Run, small_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = run("apply", small_recipe, "--backend", "onnx", "--output", out, "--no-verify")
    assert outcome.code == 0
    assert "split_heads" in outcome.out
    assert "pass split_heads" in outcome.err
    assert sorted(Bundle(out).graphs) == ["prompt", "token"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "qnn", "genie"])
def test_generate_writes_text(run: Run, small_bundle: Bundle, runtime: str) -> None:
    outcome = run("generate", small_bundle.folder, "--prompt", "Return the", "--runtime", runtime, "--tokens", 12)
    assert outcome.code == 0
    assert outcome.out.startswith("Return the ")
    assert len(outcome.out.split()) > 5
    assert "stopped: 12 tokens" in outcome.err or "stopped: end of text" in outcome.err


def test_runtimes_write_the_same_greedy_text(run: Run, tiny_bundle: Bundle) -> None:
    texts = [
        run("generate", tiny_bundle.folder, "--prompt", "If the", "--runtime", runtime, "--tokens", 16).out
        for runtime in ("onnxruntime", "qnn")
    ]
    assert texts[0] == texts[1]


def test_seed_decides_the_text(run: Run, small_bundle: Bundle) -> None:
    def sampled(seed: int) -> str:
        options = ("--temperature", 1.0, "--top-k", 40, "--tokens", 16, "--seed", seed)
        return run("generate", small_bundle.folder, "--prompt", "Return", *options).out

    assert sampled(1) == sampled(1) != sampled(2)


def test_generation_stops_at_the_end_of_the_context(run: Run, small_bundle: Bundle) -> None:
    options = ("--temperature", 1.5, "--tokens", 400, "--seed", 3)
    outcome = run("generate", small_bundle.folder, "--prompt", "word " * 60, *options)
    assert outcome.code == 0
    assert "the context of 128 tokens is full" in outcome.err or "end of text" in outcome.err


def test_prompt_beyond_the_context_is_refused(run: Run, small_bundle: Bundle) -> None:
    outcome = run("generate", small_bundle.folder, "--prompt", "word " * 200)
    assert outcome.code == 2
    assert "the context has room for 128" in last_line(outcome)


def test_verify_runs_the_proof_again(run: Run, small_onnx: Bundle, tmp_path: Path) -> None:
    out = shutil.copytree(small_onnx.folder, tmp_path / "out")
    assert "proof" not in Bundle(out).report
    outcome = run("verify", out)
    assert outcome.code == 0
    assert "perplexity" in outcome.out
    assert {c["step"] for c in Bundle(out).report["proof"]} == {1, 2, 3, 6}


def test_changed_file_fails_the_proof(run: Run, small_onnx: Bundle, tmp_path: Path) -> None:
    out = shutil.copytree(small_onnx.folder, tmp_path / "out")
    data = out / "onnx" / "part_1_of_2.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x55")
    outcome = run("verify", out)
    assert outcome.code == 2
    assert "part_1_of_2.data: differs from the manifest" in last_line(outcome)


def interrupt(step: str, *arguments: str) -> str:
    """Send SIGINT to a command in the child after a step that it says it has done; what it says then."""
    command = [sys.executable, "-m", "llmconv", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if step in line)
        children = children_of(process)
        process.send_signal(2)  # SIGINT
        rest = process.stderr.read()
        code = process.wait(20)
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert code == 130
    assert rest.splitlines()[-1] == "interrupted"
    assert "Traceback" not in rest
    return rest


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The compiler or the simulator, once it runs."""
    while not (found := psutil.Process(process.pid).children(recursive=True)):
        assert process.poll() is None
        time.sleep(0.02)
    return found


@pytest.mark.slow
def test_interrupt_leaves_finished_steps_alone(small_recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    rest = interrupt("compile", "apply", str(small_recipe), "--no-verify", "--output", str(output))
    assert "the same command goes on from there" in rest
    assert [p.name for p in tmp_path.iterdir()] == [".out.work"]


@pytest.mark.slow
def test_interrupted_proof_leaves_no_simulator_behind(small_bundle: Bundle, tmp_path: Path) -> None:
    bundle = shutil.copytree(small_bundle.folder, tmp_path / "out")
    interrupt("token on onnxruntime", "verify", str(bundle))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def last_line(outcome: Outcome) -> str:
    return (outcome.err.splitlines() or [""])[-1]


def test_a_proof_that_fails_is_exit_code_1() -> None:
    _exit_by([{"passed": True}, {"passed": None}])
    with pytest.raises(typer.Exit) as left:
        _exit_by([{"passed": True}, {"passed": False}])
    assert left.value.exit_code == 1
