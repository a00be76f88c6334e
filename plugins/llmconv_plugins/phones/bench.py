"""Has Genie on a phone answer a prompt some times, and reads what it measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from llmconv import Bundle
from llmconv_plugins.genie.exporter import genie_config
from llmconv_plugins.phones.adb import Adb, PhoneError
from llmconv_plugins.phones.chip import for_chip
from llmconv_plugins.phones.codes import explain
from llmconv_plugins.phones.files import HOST, PROGRAM, bundle_items, libraries, place_of
from llmconv_plugins.phones.profile import Figures, figures
from llmconv_plugins.phones.thermal import ASKED, Thermal, thermal
from llmconv_plugins.qnn.qairt import PATTERN, needed, older, release

CONFIG, PROMPT, PROFILE = "bench.json", "prompt.txt", "profile.json"
TOKENS = 128  # at most; half the context where that is less


@dataclass(frozen=True)
class Measured:
    """What a phone measured.

    Attributes:
        chip: its part number.
        qairt: the release of its libraries; "" where they do not say.
        before, after: how warm it was.
        runs: each loads the model anew.
    """

    chip: str
    qairt: str
    before: Thermal
    after: Thermal
    runs: list[Figures]


def bench(bundle: Bundle, adb: Adb, prompt: str, tokens: int | None, runs: int, say: Callable[[str], None]) -> Measured:
    """Measure on a phone that `push` has made ready.

    Args:
        tokens: of each answer, at most.
        say: told of each run before it begins.

    Raises:
        BundleError: the bundle has no files for Genie.
        PhoneError: something is missing on the phone, of another release or chip, or Genie fails there.
    """
    genie_config(bundle)
    chip, bundle = for_chip(adb, bundle)
    place, config = place_of(bundle), genie_config(bundle)
    config["dialog"]["max-num-tokens"] = tokens or min(TOKENS, config["dialog"]["context"]["size"] // 2)
    qairt = check_pushed(adb, bundle)
    adb.ask(f"cat > {place}/{CONFIG}", json.dumps(config))
    adb.ask(f"cat > {place}/{PROMPT}", prompt)
    before = thermal(adb.ask(ASKED))
    found = []
    for i in range(runs):
        say(f"run {i + 1} of {runs}")
        found.append(_run(adb, place))
    return Measured(chip, qairt, before, thermal(adb.ask(ASKED)), found)


def check_pushed(adb: Adb, bundle: Bundle) -> str:
    """The release of QAIRT on the phone.

    Raises:
        PhoneError: a file of the bundle or of Genie is not there or not whole, libraries are of several releases, or of
            an older one than the bundle needs.
    """
    place, items = place_of(bundle), bundle_items(bundle)
    names = (PROGRAM, *libraries(bundle.manifest["target"]["htp_arch"]))
    paths = [*(item.there for item in items), *(f"{place}/{name}" for name in names)]
    lines = adb.shell(f"stat -c '%s %n' {' '.join(paths)}").output.splitlines()  # which fails where one is missing
    sizes = {path: int(count) for count, _, path in (line.partition(" ") for line in lines)}
    if wrong := [item.there for item in items if sizes.get(item.there) != item.size]:
        raise PhoneError(f"{wrong[0]}: {'not whole' if wrong[0] in sizes else 'missing'} on the phone; push the bundle")
    if missing := [path for path in paths if path not in sizes]:
        raise PhoneError(f"{missing[0]}: missing on the phone; push with --sdk FOLDER, of a QAIRT SDK")
    host, dsp = (_build(adb, f"{place}/{name}") for name in (HOST, names[-1]))
    if host and dsp and host != dsp:
        raise PhoneError(f"{place}: {HOST} is of QAIRT {host}, {names[-1]} of {dsp}; push both from one SDK with --sdk")
    one, needs = release(host), needed(bundle)
    if needs and one and older(one, needs):
        raise PhoneError(f"{place}: QAIRT {one} does not load this bundle, which needs {needs} or newer; use --sdk")
    return one


def _build(adb: Adb, library: str) -> str:
    """Of which build a library on the phone is, such as 2.51.0.260929181845; "" where it does not say."""
    said = adb.shell(f"grep -a -o -m 1 -E '{PATTERN}' {library}").output.split()
    return said[0].removeprefix("v") if said else ""


def _run(adb: Adb, place: str) -> Figures:
    answer = adb.shell(
        f"cd {place} && rm -f {PROFILE} && export LD_LIBRARY_PATH={place} ADSP_LIBRARY_PATH={place} && "
        f"./{PROGRAM} -c {CONFIG} --prompt_file {PROMPT} --profile {PROFILE}"
    )
    if answer.code:
        raise PhoneError(f"Genie on the phone: {explain(answer.text, answer.code)}")
    return figures(adb.ask(f"cat {place}/{PROFILE}"))
