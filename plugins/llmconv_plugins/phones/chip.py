"""Whether a phone carries the chip that a bundle is made for."""

from __future__ import annotations

import logging

from llmconv import Bundle
from llmconv_plugins.chipsets import CHIPSETS
from llmconv_plugins.phones.adb import Adb, PhoneError

ASKED = "getprop ro.soc.model"  # Android 12 and newer
logger = logging.getLogger(__name__)


def check_chip(adb: Adb, bundle: Bundle) -> str:
    """The phone's part number, such as SM8750.

    Raises:
        PhoneError: it is known, and another chip's; binaries of one chip end with error 5000 on another.
    """
    target = bundle.manifest["target"]
    has = adb.ask(ASKED).strip()
    if has.startswith(target["model"]):  # SM8750P, SM8550-AC
        return has
    if known := next((c for c in CHIPSETS if has.startswith(c.model)), None):
        raise PhoneError(
            f"the phone has a {known.name} ({has}), and the bundle is made for {target['name']} ({target['model']}); "
            f'convert with target.name = "{known.name}"'
        )
    logger.warning(
        "the phone calls its chip '%s'; the bundle is made for %s (%s), and runs there alone",
        has,
        target["name"],
        target["model"],
    )
    return has
