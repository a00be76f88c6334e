"""`llmconv push` and `bench` against a stand-in for adb: what reaches the phone, what is said, what the page says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmconv import Bundle, BundleError, RecipeError
from llmconv_plugins.phones.adb import PhoneError
from llmconv_plugins.phones.commands import PROMPT_TEXT, measuring, pushing
from llmconv_plugins.phones.files import libraries, place_of
from llmconv_plugins.qnn.qairt import needed

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
PLACE = "/data/local/tmp/llmconv/small"
THERMAL = """\
IsStatusOverride: false
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=99.0, mType=3, mName=skin, mStatus=0}}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{{mValue=41.0, mType=0, mName=CPU0, mStatus=0}}
\tTemperature{{mValue={skin}, mType=3, mName=skin, mStatus=0}}
\tTemperature{{mValue=52.5, mType=9, mName=nsp0, mStatus=0}}
Current cooling devices from HAL:
"""


def profile(first: float, rate: float, tokens: int = 64) -> str:
    """In the form that `test_profile.py` has libGenie write, with figures that no phone measured."""
    create = {"type": "GenieDialog_create", "init-time": {"value": 1500000, "unit": "us"}}
    query = {
        "type": "GenieDialog_query",
        "num-prompt-tokens": {"value": 9, "unit": ""},
        "prompt-processing-rate": {"value": 800.0, "unit": "toks/sec"},
        "time-to-first-token": {"value": first, "unit": "us"},
        "num-generated-tokens": {"value": tokens, "unit": ""},
        "token-generation-rate": {"value": rate, "unit": "toks/sec"},
    }
    return json.dumps({"components": [{"name": "dialog0", "type": "dialog", "events": [create, query]}]})


@dataclass
class Phone:
    """A stand-in's folder."""

    home: Path

    def says(self, **changes: Any) -> None:
        """Change what it answers and what goes wrong."""
        file = self.home / "phone.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    @property
    def calls(self) -> list[list[str]]:
        """Since it was plugged in, or looked at."""
        file = self.home / "transcript.jsonl"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return found

    @property
    def files(self) -> dict[str, bytes]:
        """What it holds."""
        storage = self.home / "storage"
        return {str(f.relative_to(storage)): f.read_bytes() for f in sorted(storage.rglob("*")) if f.is_file()}


def plug_in(home: Path, patch: pytest.MonkeyPatch) -> Phone:
    """A phone that has nothing, the only one, whose adb is the first on the PATH."""
    (home / "storage").mkdir(parents=True)
    (home / "bin").mkdir()
    adb = home / "bin" / "adb"
    adb.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{HERE / "stand_in_adb.py"}" "$@"\n')
    adb.chmod(0o755)
    answers = {
        "getprop ro.soc.model": ["SM8550\n"],
        "dumpsys thermalservice": [THERMAL.format(status=0, skin=33.5), THERMAL.format(status=1, skin=38.25)],
    }
    profiles = [profile(90000.0, 20.0), profile(70000.0, 24.0), profile(80000.0, 22.0)]
    (home / "phone.json").write_text(
        json.dumps({"devices": {"R5CT": "device"}, "answers": answers, "profiles": profiles})
    )
    patch.setenv("STAND_IN", str(home))
    patch.setenv("PATH", f"{adb.parent}:{os.environ['PATH']}")
    patch.delenv("ANDROID_SERIAL", raising=False)
    return Phone(home)


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    return plug_in(tmp_path / "phone", monkeypatch)


@pytest.fixture
def sdk(small_bundle: Bundle, tmp_path: Path) -> Path:
    """A folder laid out as a QAIRT SDK, for v73, whose libraries say their release: the compiler's."""
    folder, build = tmp_path / "qairt", f"v{needed(small_bundle)}.260929181845"
    *host, skel = libraries("73")
    for name in host:
        write(folder / "lib" / "aarch64-android" / name, f"ELF {name} {build}\0")
    write(folder / "lib" / "hexagon-v73" / "unsigned" / skel, f"ELF {skel} {build}\0")
    program = folder / "bin" / "aarch64-android" / "genie-t2t-run"
    write(program, f'#!/bin/sh\nexec "{sys.executable}" -I -S "{HERE / "stand_in_genie.py"}" "$@"\n')
    return folder


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def run(app: Any, bundle: Bundle, *options: object) -> str:
    """What a command says on stdout; what it raises."""
    result = CliRunner().invoke(app, [str(bundle.folder), *map(str, options)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(app: Any, bundle: Bundle, *options: object) -> str:
    """The one line that a command ends with."""
    with pytest.raises(PhoneError) as error:
        run(app, bundle, *options)
    assert "\n" not in str(error.value)
    return str(error.value)


def documented(heading: str, bundle: Bundle, sdk: Path, cwd: Path) -> None:
    """Run the commands that the page has under a heading, for another bundle and another SDK."""
    page = (ROOT / "docs" / "phones.md").read_text()
    section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    commands = block[1].replace("llmconv/tiny_llama", "llmconv/small").replace("~/qairt/2.51.0.260929", str(sdk))
    commands = commands.replace("build/tiny_llama", str(bundle.folder))
    subprocess.run(["sh", "-c", commands], cwd=cwd, check=False, capture_output=True)


def test_push_sends_what_the_page_says(
    small_bundle: Bundle, phone: Phone, sdk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pushing, small_bundle, "--sdk", sdk)
    calls, files = phone.calls, phone.files
    other = plug_in(tmp_path / "other", monkeypatch)
    documented("What `push` does", small_bundle, sdk, tmp_path)
    assert calls == other.calls
    assert files == other.files
    assert len(files) == 5 + 8
    for name in small_bundle.manifest["files"]:
        if there := files.get(f"llmconv/small/{name}"):
            assert there == small_bundle.path(name).read_bytes()


def test_bench_sends_what_the_page_says(
    small_bundle: Bundle, phone: Phone, sdk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pushing, small_bundle, "--sdk", sdk)
    phone.calls  # noqa: B018  from here on
    shutil.copytree(phone.home / "storage", tmp_path / "pushed")
    run(measuring, small_bundle, "--adb", "--runs", 1)
    calls, files = phone.calls, phone.files
    other = plug_in(tmp_path / "other", monkeypatch)
    shutil.copytree(tmp_path / "pushed", other.home / "storage", dirs_exist_ok=True)
    config = json.loads(small_bundle.path("genie_config.json").read_text())
    config["dialog"]["max-num-tokens"] = 64
    (tmp_path / "bench.json").write_text(json.dumps(config))
    (tmp_path / "prompt.txt").write_text(PROMPT_TEXT)
    documented("What `bench` does", small_bundle, sdk, tmp_path)
    assert calls == other.calls
    assert files == other.files
    assert "llmconv/small/profile.json" in files


def test_bench_prints_what_genie_measured(small_bundle: Bundle, phone: Phone, sdk: Path) -> None:
    run(pushing, small_bundle, "--sdk", sdk)
    said = run(measuring, small_bundle, "--adb")
    assert "SM8550, measured by Genie" in said
    rows = [re.sub(r"[^\w. ]", "", line).split() for line in said.splitlines()]
    assert ["1", "1.50", "9", "800.0", "90.0", "64", "20.00"] in rows
    assert ["3", "1.50", "9", "800.0", "80.0", "64", "22.00"] in rows
    assert ["median", "80.0", "22.00"] in rows
    assert (
        f"QAIRT {needed(small_bundle)}; before: skin 33.5 °C, NPU 52.5 °C, throttling none; "
        "after: skin 38.2 °C, NPU 52.5 °C, throttling light" in said
    )


def test_bench_for_programs(small_bundle: Bundle, phone: Phone, sdk: Path) -> None:
    run(pushing, small_bundle, "--sdk", sdk)
    found = json.loads(
        run(measuring, small_bundle, "--adb", "--runs", 2, "--tokens", 7, "--prompt", "Say 'a'", "--json")
    )
    assert [r["first_token"] for r in found["runs"]] == pytest.approx([0.09, 0.07])
    assert found["runs"][0]["load"] == pytest.approx(1.5)
    assert (found["chip"], found["qairt"], found["after"]["skin"]) == ("SM8550", needed(small_bundle), 38.25)
    files = phone.files
    assert json.loads(files["llmconv/small/bench.json"])["dialog"]["max-num-tokens"] == 7
    assert files["llmconv/small/prompt.txt"] == b"Say 'a'"


def test_a_second_push_sends_what_has_changed_alone(small_bundle: Bundle, phone: Phone, sdk: Path) -> None:
    run(pushing, small_bundle)
    assert "genie-t2t-run" not in "".join(phone.files)
    assert [call[1:-1] for call in phone.calls if call[0] == "push"][1] == [
        "qnn/part_1_of_2.bin",
        "qnn/part_2_of_2.bin",
    ]
    (phone.home / "storage" / "llmconv" / "small" / "tokenizer.json").write_text("half")
    run(pushing, small_bundle)
    assert [call for call in phone.calls if call[0] == "push"] == [["push", "tokenizer.json", PLACE]]
    assert "0.00 MB pushed" in run(pushing, small_bundle)
    assert not [call for call in phone.calls if call[0] == "push"]


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ({}, "no phone; plug one in by USB"),
        ({"R5CT": "unauthorized"}, "phone R5CT: unauthorized; unlock it and allow USB debugging"),
        ({"R5CT": "offline"}, "phone R5CT: offline; plug it in again"),
        ({"R5CT": "no permissions (missing udev rules?)"}, "phone R5CT: no permissions; this user may not open"),
        ({"R5CT": "recovery"}, "phone R5CT: recovery; start Android on it"),
        (
            {"R5CT": "device", "emulator-5554": "device"},
            r"several phones \(R5CT, emulator-5554\); choose one with --serial",
        ),
    ],
)
def test_a_phone_that_is_not_ready(small_bundle: Bundle, phone: Phone, devices: dict[str, str], said: str) -> None:
    phone.says(devices=devices)
    for app, options in ((pushing, ()), (measuring, ("--adb",))):
        assert re.match(said, refused(app, small_bundle, *options))
    assert phone.calls == [["devices"]] * 2
    assert phone.files == {}


def test_one_of_several_phones(small_bundle: Bundle, phone: Phone) -> None:
    phone.says(devices={"R5CT": "device", "emulator-5554": "device"})
    run(pushing, small_bundle, "--serial", "R5CT")
    assert all(call[:2] == ["-s", "R5CT"] for call in phone.calls[1:])
    assert "adb knows R5CT, emulator-5554" in refused(pushing, small_bundle, "--serial", "R5CX")
    phone.says(devices={"R5CT": "device", "emulator-5554": "offline"})
    run(pushing, small_bundle)
    assert all(call[:2] == ["-s", "R5CT"] for call in phone.calls[2:])


def test_no_adb(small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "platform-tools" in refused(pushing, small_bundle)


def test_full_storage_is_seen_before_anything_is_sent(small_bundle: Bundle, phone: Phone) -> None:
    answers = json.loads((phone.home / "phone.json").read_text())["answers"]
    table = "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/block/dm-9 100000 99900 100 99% /data\n"
    phone.says(answers={**answers, f"df -k {PLACE}": [table]})
    assert re.search(r"storage has 0.10 MB free, and .* are to go there; free ", refused(pushing, small_bundle))
    assert phone.files == {}


def test_a_push_that_fills_the_storage_goes_on_later(small_bundle: Bundle, phone: Phone) -> None:
    phone.says(full="part_2_of_2.bin")
    assert "the phone's storage is full" in refused(pushing, small_bundle)
    phone.says(full=None)
    phone.calls  # noqa: B018  from here on
    run(pushing, small_bundle)
    assert [call[1:-1] for call in phone.calls if call[0] == "push"] == [["qnn/part_2_of_2.bin"]]


def test_a_phone_that_is_unplugged(small_bundle: Bundle, phone: Phone) -> None:
    phone.says(lost_at="push")
    assert "device 'R5CT' not found; repeat the command" in refused(pushing, small_bundle)
    phone.says(lost_at="shell")
    assert "the phone is gone (device 'R5CT' not found)" in refused(pushing, small_bundle)


def test_a_file_that_arrives_damaged(small_bundle: Bundle, phone: Phone) -> None:
    phone.says(damaged="part_1_of_2.bin")
    assert f"{PLACE}/qnn/part_1_of_2.bin: arrived damaged" in refused(pushing, small_bundle)


def test_a_bundle_without_binaries(small_onnx: Bundle, phone: Phone) -> None:
    for app, options in ((pushing, ()), (measuring, ("--adb",))):
        with pytest.raises(BundleError, match=r"no genie_config\.json .*convert with backend qnn"):
            run(app, small_onnx, *options)
    assert phone.files == {}


def test_another_chip(small_bundle: Bundle, phone: Phone, caplog: pytest.LogCaptureFixture) -> None:
    phone.says(answers={"getprop ro.soc.model": ["SM8650\n"]})
    assert "has a Snapdragon 8 Gen 3 (SM8650)" in refused(pushing, small_bundle)
    assert phone.files == {}
    phone.says(answers={"getprop ro.soc.model": ["MT6989\n"]})
    run(pushing, small_bundle)
    assert "calls its chip 'MT6989'" in caplog.text


def test_what_the_sdk_lacks(small_bundle: Bundle, phone: Phone, sdk: Path) -> None:
    (sdk / "lib" / "hexagon-v73" / "unsigned" / "libQnnHtpV73Skel.so").unlink()
    assert "libQnnHtpV73Skel.so: missing; --sdk takes" in refused(pushing, small_bundle, "--sdk", sdk)
    assert "genie-t2t-run: missing; --sdk takes" in refused(pushing, small_bundle, "--sdk", sdk / "lib")
    assert phone.files == {}


def test_an_sdk_older_than_the_compiler(small_bundle: Bundle, phone: Phone, sdk: Path) -> None:
    write(sdk / "lib" / "aarch64-android" / "libQnnHtp.so", "v2.45.0.260406000000\0")
    said = refused(pushing, small_bundle, "--sdk", sdk)
    assert said == f"{sdk}: QAIRT 2.45.0 does not load this bundle, which needs {needed(small_bundle)} or newer"
    assert phone.files == {}


def test_what_is_wrong_on_the_phone_is_said_before_genie_runs(small_bundle: Bundle, phone: Phone, sdk: Path) -> None:
    assert refused(measuring, small_bundle, "--adb") == (
        f"{PLACE}/genie_config.json: missing on the phone; push the bundle"
    )
    run(pushing, small_bundle)
    said = refused(measuring, small_bundle, "--adb")
    assert said == f"{PLACE}/genie-t2t-run: missing on the phone; push with --sdk FOLDER, of a QAIRT SDK"
    run(pushing, small_bundle, "--sdk", sdk)
    there = phone.home / "storage" / "llmconv" / "small"
    (there / "libQnnHtpV73Skel.so").write_text("v2.45.0.260406000000\0")
    said = refused(measuring, small_bundle, "--adb")
    wrong = f"QAIRT {needed(small_bundle)}.260929181845, libQnnHtpV73Skel.so of 2.45.0.260406000000; push both"
    assert f"libQnnHtp.so is of {wrong}" in said
    (there / "qnn" / "part_2_of_2.bin").write_bytes(b"half")
    assert "part_2_of_2.bin: not whole on the phone; push the bundle" in refused(measuring, small_bundle, "--adb")
    run(pushing, small_bundle)
    (there / "libQnnHtp.so").write_text("v2.45.0.260406000000\0")
    said = refused(measuring, small_bundle, "--adb")
    wants = f"which needs {needed(small_bundle)} or newer; use --sdk"
    assert said == f"{PLACE}: QAIRT 2.45.0 does not load this bundle, {wants}"


# What Genie of QAIRT 2.49 said here of a binary of 2.51 ("5000 "), and what it and QNN said on phones: of
# github.com/qualcomm/ai-hub-apps/issues/148 and /158, qai-appbuilder/issues/97, UbiquitousLearning/mllm/issues/272.
RECORDED = {
    "5000": '[INFO]  "Using create From Binary"\n[INFO]  "Allocated total size = 312936960 across 8 buffers"\n'
    '[ERROR] "Could not create context from binary for context index = 0 : err 5000"\n'
    '[ERROR] "Create From Binary FAILED!"\nFailure to initialize model\nFailed to create the dialog.\n',
    "5000 ": '[ERROR] "Using newer context binary on old SDK"\n[ERROR] "Fail to get context blob with err 5000"\n',
    "1002": "[ ERROR ]  <E> fastrpc memory map for fd: 47 with length: 12582912 failed with error: 0x1\n"
    "[ ERROR ]  <E> Context create from binary failed for deviceId 0 coreId 0 pdId 0 for context 1, err 1002\n",
    "1008": "[ ERROR ]  <E> Failed to create transport for device, error: 1008\n"
    "[ ERROR ]  <E> Transport layer setup failed: 14001\n",
    "14001": "[ ERROR ] QnnDsp <E> DspTransport.openSession qnn_open failed, 0xffffffff, prio 100\n"
    "[ ERROR ] QnnDsp <E> Failed to load skel, error: 4000\n"
    "[ ERROR ] QnnDsp <E> Transport layer setup failed: 14001\n",
}


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        ("1002", "more parts (passes.split_model.parts)"),
        ("1008", "different QAIRT releases on the phone; push all of them from one SDK"),
        ("5000 ", "older than the one that compiled the binaries"),
        ("5000", "older than the one that compiled the binaries, or the binaries are for another chip"),
        ("14001", "is not where ADSP_LIBRARY_PATH says"),
    ],
)
def test_codes_are_explained(small_bundle: Bundle, phone: Phone, sdk: Path, code: str, meant: str) -> None:
    run(pushing, small_bundle, "--sdk", sdk)
    phone.says(genie=RECORDED[code])
    said = refused(measuring, small_bundle, "--adb")
    assert said.startswith(f"Genie on the phone: error {code.strip()}: ")
    assert meant in said


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "QnnDsp <E> Stub lib id mismatch: expected (v2.37.0.250724175447_124859), "
            "detected (v2.25.5.240807173323_97754)\nerror: 1008\n",
            "the library for the NPU is of QAIRT 2.25.5.240807173323, the others are of 2.37.0.250724175447 (1008)",
        ),
        (
            'CANNOT LINK EXECUTABLE "./genie-t2t-run": library "libGenie.so" not found: needed by main executable\n',
            "libGenie.so is missing on the phone; push again with --sdk",
        ),
        ('Using libGenie.so version 1.1.0\n[ERROR] "Unable to find a valid interface."\n', "Unable to find a valid"),
        ("", "exit code 1"),
    ],
)
def test_other_failures(small_bundle: Bundle, phone: Phone, sdk: Path, log: str, said: str) -> None:
    run(pushing, small_bundle, "--sdk", sdk)
    phone.says(genie=log)
    assert said in refused(measuring, small_bundle, "--adb")


def test_the_commands_are_named_in_the_metadata() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["llmconv.commands"]
    assert EntryPoint("push", named["push"], "llmconv.commands").load() is pushing
    assert EntryPoint("bench", named["bench"], "llmconv.commands").load() is measuring


def test_without_saying_where(small_bundle: Bundle) -> None:
    with pytest.raises(RecipeError, match="--adb takes the phone"):
        run(measuring, small_bundle)


def test_the_place_is_one_word(small_bundle: Bundle) -> None:
    small_bundle_named = Bundle(small_bundle.folder)
    small_bundle_named.manifest = {**small_bundle.manifest, "recipe": {"name": "my model's"}}
    assert place_of(small_bundle_named) == "/data/local/tmp/llmconv/my_model_s"
