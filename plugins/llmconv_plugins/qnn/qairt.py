"""Releases of QAIRT: which a bundle needs, which an SDK or a phone has."""

from __future__ import annotations

import re
from pathlib import Path

from llmconv import Bundle

NAME = "qairt"  # in a manifest's `needs`
# From which Genie orders ten parts and more by their numbers. libGenie of 2.49.40, on the simulator: "Model Validation
# Errors found; token_ar1_cl128_10_of_10 : input_ids - Tensor not found"; of 2.50.40 and 2.51.0: the text of torch.
ORDERED = "2.50"
UNORDERED_PARTS = 10
_BUILD = rb"v(\d+\.\d+\.\d+)\.\d{6,}"  # as its libraries hold it: v2.51.0.260929181845
PATTERN = "v[0-9]+[.][0-9]+[.][0-9]+[.][0-9]{6,}"  # the same, as the phone's grep takes it


def release(build: str) -> str:
    """2.51.0 of v2.51.0.260929181845; "" of what is none."""
    found = re.match(r"v?(\d+\.\d+\.\d+)", build)
    return found[1] if found else ""


def older(one: str, other: str) -> bool:
    """Whether a release is older than another."""
    return _numbers(one) < _numbers(other)


def needs(build: str, parts: int) -> dict[str, str]:
    """What a device needs to run binaries, for the manifest: the lowest release that will do.

    A runtime loads binaries of its own release and of older ones ("at least as high as the model assets",
    github.com/qualcomm/ai-hub-apps/issues/148). libGenie of 2.48 to 2.50 says of one that 2.51 compiled: "Using newer
    context binary on old SDK; Fail to get context blob with err 5000"; that of 2.51 runs one that 2.49 compiled.

    Args:
        build: of the compiler, as binaries have it; "" where it is not known.
        parts: how many binaries there are.
    """
    found = [release(build)] + ([f"{ORDERED}.0"] if parts >= UNORDERED_PARTS else [])
    known = sorted(filter(None, found), key=_numbers)
    return {NAME: known[-1]} if known else {}


def order_warning(parts: int) -> list[str]:
    """What is to be known of a bundle with so many parts."""
    if parts < UNORDERED_PARTS:
        return []
    return [
        f"{parts} parts: Genie of QAIRT below {ORDERED} takes part 10 for the first and refuses them; "
        f"run them with a newer one, or set passes.split_model.parts = {UNORDERED_PARTS - 1} or less"
    ]


def needed(bundle: Bundle) -> str:
    """The lowest release that runs a bundle; "" where it does not say."""
    return str(bundle.manifest.get("needs", {}).get(NAME, ""))


def release_of(library: Path) -> str:
    """The release of one of QNN's libraries; "" where it does not say."""
    found = re.search(_BUILD, library.read_bytes())
    return found[1].decode() if found else ""


def _numbers(one: str) -> tuple[int, ...]:
    return tuple(int(number) for number in one.split("."))
