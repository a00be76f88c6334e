"""Brings to a phone what it lacks of a bundle, and of Genie where an SDK is given; repeated, it goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmconv import Bundle
from llmconv_plugins.genie.exporter import genie_config
from llmconv_plugins.phones.adb import Adb, PhoneError
from llmconv_plugins.phones.chip import for_chip
from llmconv_plugins.phones.files import PROGRAM, Item, bundle_items, folders, groups, megabytes, place_of, sdk_items

Say = Callable[[str], None]
_SUM = re.compile(r"^\\?([0-9a-f]{64})[ *]+(.+)$")


@dataclass(frozen=True)
class Pushed:
    """What came of it.

    Attributes:
        place: the bundle's folder on the phone.
        sent, kept: bytes that were pushed, and that were there.
        genie: whether Genie itself came along.
    """

    place: str
    sent: int
    kept: int
    genie: bool


def push(bundle: Bundle, adb: Adb, sdk: Path | None, say: Say) -> Pushed:
    """Push the files that the phone lacks, and compare the sha256 of each there.

    Args:
        sdk: the folder of a QAIRT SDK; None leaves on the phone what is there of Genie.
        say: told of each push before it begins.

    Raises:
        BundleError: the bundle has no files for Genie.
        PhoneError: the phone has another chip, no room, or goes away; or the SDK does not fit the bundle.
    """
    genie_config(bundle)
    _, bundle = for_chip(adb, bundle)
    items = bundle_items(bundle) + (sdk_items(sdk, bundle) if sdk is not None else [])
    adb.ask(f"mkdir -p {' '.join(folders(items))}")
    there = _sums(adb, items)
    lacking = [item for item in items if there.get(item.there) != item.sha256]
    _check_room(adb, bundle, lacking)
    for group in groups(lacking):
        say(f"{', '.join(Path(item.file).name for item in group)}: {megabytes(sum(item.size for item in group))}")
        adb.push([item.file for item in group], group[0].folder)
    if lacking:
        _compare(adb, lacking)
    if sdk is not None:
        adb.ask(f"chmod 755 {place_of(bundle)}/{PROGRAM}")
    sent = sum(item.size for item in lacking)
    return Pushed(place_of(bundle), sent, sum(item.size for item in items) - sent, sdk is not None)


def _sums(adb: Adb, items: Sequence[Item]) -> dict[str, str]:
    """Path on the phone -> sha256 of the file there; those that are not there are left out."""
    answer = adb.shell(f"sha256sum {' '.join(item.there for item in items)}")  # which fails where one is missing
    found = (_SUM.match(line) for line in answer.output.splitlines())
    return {match[2]: match[1] for match in found if match}


def _check_room(adb: Adb, bundle: Bundle, lacking: Sequence[Item]) -> None:
    """Stop before the phone is full; what `df` does not tell is left to the push."""
    lines = adb.ask(f"df -k {place_of(bundle)}").splitlines()
    words = lines[-1].split() if lines else []
    need = sum(item.size for item in lacking)
    if len(words) >= 4 and words[3].isdecimal() and need > int(words[3]) * 1024:
        free = int(words[3]) * 1024
        raise PhoneError(
            f"{place_of(bundle)}: the phone's storage has {megabytes(free)} free, and {megabytes(need)} are to go "
            f"there; free {megabytes(need - free)}"
        )


def _compare(adb: Adb, pushed: Sequence[Item]) -> None:
    there = _sums(adb, pushed)
    if wrong := [item for item in pushed if there.get(item.there) != item.sha256]:
        raise PhoneError(f"{wrong[0].there}: arrived damaged; repeat the command, or try another cable or port")
