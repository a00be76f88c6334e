"""`llmconv chat` as a person types it: in a terminal, through a pipe, with one prompt."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmconv import Bundle
from llmconv.cli import main

LLMCONV = [sys.executable, "-m", "llmconv", "chat"]
GREEDY = ("--temperature", "0")
OWN_TERMINAL = (  # where Ctrl-C means something, also when the tests run in the background of a shell
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)
PATIENCE = 60  # seconds that a test waits for a word before it fails
LONG = "If the argument is"  # on which the tiny model writes to the end of the context


def once(*arguments: object, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run([*LLMCONV, *map(str, arguments)], capture_output=True, check=False, **given)  # type: ignore[call-overload,no-any-return]


class Terminal:
    """A child on a dumb pseudo-terminal."""

    def __init__(self, *arguments: object) -> None:
        self.descriptor, inner = pty.openpty()
        self.child = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL, *LLMCONV, *map(str, arguments)],
            **dict.fromkeys(("stdin", "stdout", "stderr"), inner),
            env={**os.environ, "TERM": "dumb", "NO_COLOR": "1"},
            start_new_session=True,
        )
        os.close(inner)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait(self, pattern: str) -> str:
        """What came up to the pattern, which is then forgotten."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not come: {self.seen!r}"
            try:
                self.seen += os.read(self.descriptor, 4096).decode(errors="replace").replace("\r\n", "\n")
            except OSError:  # how Linux says that the child has closed the terminal
                pytest.fail(f"{pattern!r} did not come before the end: {self.seen!r}")
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def end(self) -> int:
        with contextlib.suppress(OSError):  # how Linux says that the child has closed the terminal
            while select.select([self.descriptor], [], [], PATIENCE)[0]:
                self.seen += os.read(self.descriptor, 4096).decode(errors="replace")
        return self.child.wait(PATIENCE)


@contextlib.contextmanager
def terminal(*arguments: object) -> Iterator[Terminal]:
    opened = Terminal(*arguments)
    try:
        yield opened
    finally:
        os.close(opened.descriptor)
        opened.child.kill()
        opened.child.wait()


def test_a_talk_in_a_dumb_terminal(small_bundle: Bundle) -> None:
    with terminal(small_bundle.folder, *GREEDY, "--tokens", 90) as chat:
        begin = chat.wait(r"> ")
        assert "no chat template" in begin
        assert "128 tokens of context; Ctrl-C stops an answer" in begin
        chat.type("\n")
        chat.wait(r"> ")
        chat.type(f"{LONG}\n")
        chat.wait(r"argument")
        chat.wait(r"\w+ \w+")
        chat.type("\x03")
        stopped = chat.wait(r"> ")
        assert re.search(r"\n\d+ tokens, .*; stopped\n", stopped)
        assert len(stopped) < 400
        assert "they say nothing about the phone's" in stopped
        chat.type("The\n")
        again = chat.wait(r"> ")
        assert re.search(r"\d+ tokens, [\d.]+ tokens/s, the first after [\d.]+ s; ", again)
        assert "nothing about the phone's" not in again  # said once
        chat.type("word " * 200 + "\n")
        assert re.search(r"not answered: the prompt has \d+ tokens by itself, .* holds 128", chat.wait(r"\n> "))
        for _ in range(5):  # each leaves less than a quarter of the context
            chat.type("word " * 30 + "\n")
            turn = chat.wait(r"\n> ")
            if "forgotten" in turn:
                break
        assert re.search(r"forgotten to make room: the oldest \d turn\(s\); the context holds 128 tokens\n", turn)
        chat.type("\x04")
        assert chat.end() == 0
        assert "Traceback" not in chat.seen
        assert "\x1b" not in begin + stopped + again + chat.seen


def test_ctrl_c_at_the_prompt_ends_the_chat(small_bundle: Bundle) -> None:
    with terminal(small_bundle.folder) as chat:
        chat.wait(r"> ")
        time.sleep(1)  # Python itself loses a Ctrl-C between printing the prompt and reading
        chat.type("\x03")
        assert chat.end() == 0
        assert "Traceback" not in chat.seen


def test_stdin_and_prompt_give_the_same_answer_alone(small_bundle: Bundle) -> None:
    piped = once(small_bundle.folder, *GREEDY, "--tokens", 12, stdin=b"Return the\n")
    given = once(small_bundle.folder, *GREEDY, "--tokens", 12, "--prompt", "Return the", stdin=b"unread")
    assert (piped.returncode, given.returncode) == (0, 0)
    assert piped.stdout == given.stdout
    assert len(piped.stdout.split()) > 5
    assert b"tokens/s" not in piped.stdout
    assert b"12 tokens, " in piped.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--runtime", "onxruntime"), "no runtime named 'onxruntime'; did you mean 'onnxruntime'?"),
        (("--prompt", " "), "--prompt: holds no text; there is nothing to answer"),
        (("--prompt", "word " * 200), "tokens by itself, and the context holds 128; say less"),
    ],
)
def test_what_cannot_be_answered(
    small_bundle: Bundle,
    arguments: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["llmconv", "chat", str(small_bundle.folder), "--prompt", "x", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (2, "")
    assert said in err.splitlines()[-1]


def test_an_empty_stdin_and_no_bundle(tmp_path: Path) -> None:
    assert b"stdin: holds no text" in once(tmp_path, stdin=b"").stderr
    done = once(tmp_path, stdin=b"\xff hello")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().splitlines() == [
        f"error: {tmp_path}: not a bundle (no manifest.json); give the output folder of 'llmconv apply'"
    ]


def test_the_checkpoints_template_is_applied(small_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(small_bundle.folder, folder, ignore=shutil.ignore_patterns("qnn"))
    template = "{{ raise_exception('heard ' ~ messages | map(attribute='content') | join(' and ')) }}"
    (folder / "source" / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    done = once(folder, "--system", "this", "--prompt", "that")
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1] == (
        "error: chat_template of tokenizer_config.json: heard this and that"
    )


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_help_imports_no_torch(command: str) -> None:
    script = f"import sys; sys.argv = ['llmconv', '{command}', '--help']\nfrom llmconv.cli import main\n"
    script += "try:\n    main()\nexcept SystemExit:\n    print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--temperature" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"
