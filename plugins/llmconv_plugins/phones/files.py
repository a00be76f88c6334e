"""What a phone is given: a bundle's files, and from the QAIRT SDK Genie and its libraries for the chip."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv import Bundle
from llmconv.files import digest
from llmconv_plugins.genie.exporter import adapter_files, genie_config
from llmconv_plugins.genie.genie_config import CONFIG
from llmconv_plugins.phones.adb import PhoneError
from llmconv_plugins.qnn.qairt import needed, older, release_of

ROOT = "/data/local/tmp/llmconv"  # the one folder of a phone where adb's user may write programs and run them
PROGRAM = "genie-t2t-run"
HOST = "libQnnHtp.so"  # which says the release


@dataclass(frozen=True)
class Item:
    """One file.

    Attributes:
        file: as adb is given it: relative to the bundle, or a path.
        folder: of the phone.
    """

    file: str
    folder: str
    size: int
    sha256: str

    @property
    def there(self) -> str:
        """Its path on the phone."""
        return f"{self.folder}/{Path(self.file).name}"


def place_of(bundle: Bundle) -> str:
    """A bundle's folder on the phone."""
    return f"{ROOT}/{re.sub(r'[^A-Za-z0-9_.-]', '_', bundle.manifest['recipe']['name'])}"


def bundle_items(bundle: Bundle) -> list[Item]:
    """What Genie reads.

    Raises:
        BundleError: the bundle has no files for Genie, or one of them is missing.
    """
    place, found = place_of(bundle), []
    for name in (*named_in(genie_config(bundle)), *adapter_files(bundle)):
        path = bundle.path(name)
        file = path.relative_to(bundle.folder).as_posix()  # a chipset's own has another folder here
        sha256 = bundle.manifest["files"][file]["sha256"]
        found.append(Item(file, _folder(place, name), path.stat().st_size, sha256))
    return found


def named_in(config: dict[str, Any]) -> list[str]:
    """The configuration itself and what it names."""
    dialog = config["dialog"]
    engine = dialog["engine"]
    return [
        CONFIG,
        engine["backend"]["extensions"],
        dialog["tokenizer"]["path"],
        *engine["model"]["binary"]["ctx-bins"],
    ]


def libraries(arch: str) -> tuple[str, ...]:
    """What Genie loads on a chip of one generation, in its folder on the phone.

    Source: "Running on HTP" of the Genie SDK's tutorials, as github.com/qualcomm/ai-hub-models/issues/82 cites them.

    Args:
        arch: of the NPU, such as "79".
    """
    return (
        "libGenie.so",
        "libQnnSystem.so",
        HOST,
        "libQnnHtpPrepare.so",
        "libQnnHtpNetRunExtensions.so",
        f"libQnnHtpV{arch}Stub.so",
        f"libQnnHtpV{arch}Skel.so",
    )


def sdk_items(sdk: Path, bundle: Bundle) -> list[Item]:
    """Genie and its libraries, for Android and the bundle's chip.

    Raises:
        PhoneError: the folder is no QAIRT SDK, knows no such chip, or is older than the bundle needs.
    """
    arch, place = bundle.manifest["target"]["htp_arch"], place_of(bundle)
    android, dsp = "lib/aarch64-android", f"lib/hexagon-v{arch}/unsigned"
    *host, skel = libraries(arch)
    paths = [sdk / "bin/aarch64-android" / PROGRAM, *(sdk / android / name for name in host), sdk / dsp / skel]
    if missing := [path for path in paths if not path.is_file()]:
        raise PhoneError(
            f"{missing[0]}: missing; --sdk takes the folder of a QAIRT SDK that has {android} and lib/hexagon-v{arch}"
        )
    has, needs = release_of(sdk / android / HOST), needed(bundle)
    if needs and has and older(has, needs):
        raise PhoneError(f"{sdk}: QAIRT {has} does not load this bundle, which needs {needs} or newer")
    return [Item(str(path), place, path.stat().st_size, digest(path)) for path in paths]


def groups(items: Iterable[Item]) -> list[list[Item]]:
    """Items that one push takes together: those of one folder here and one there."""
    found: dict[tuple[Path, str], list[Item]] = {}
    for item in items:
        found.setdefault((Path(item.file).parent, item.folder), []).append(item)
    return list(found.values())


def folders(items: Sequence[Item]) -> list[str]:
    """On the phone, each once."""
    return list(dict.fromkeys(item.folder for item in items))


def megabytes(count: int) -> str:
    """For messages."""
    return f"{count / 1e6:.2f} MB"


def _folder(place: str, file: str) -> str:
    parent = Path(file).parent.as_posix()
    return place if parent == "." else f"{place}/{parent}"
