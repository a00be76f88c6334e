"""Whether a phone carries a chip that a bundle is made for."""

from __future__ import annotations

import logging

from llmconv import Bundle
from llmconv_plugins.chipsets import CHIPSETS
from llmconv_plugins.phones.adb import Adb, PhoneError

ASKED = "getprop ro.soc.model"  # Android 12 and newer
logger = logging.getLogger(__name__)


def for_chip(adb: Adb, bundle: Bundle) -> tuple[str, Bundle]:
    """The phone's part number, such as SM8750, and the bundle as its chip has it.

    Raises:
        PhoneError: it is known, and another chip's; binaries of one chip end with error 5000 on another.
    """
    has = adb.ask(ASKED).strip()
    if found := next((target for target in bundle.targets if has.startswith(target["model"])), None):
        return has, bundle.for_target(found["model"])  # SM8750P, SM8550-AC
    made_for = " and ".join(f"{target['name']} ({target['model']})" for target in bundle.targets)
    if known := next((c for c in CHIPSETS if has.startswith(c.model)), None):
        raise PhoneError(
            f"the phone has a {known.name} ({has}), and the bundle is made for {made_for}; "
            f'convert with target.name = "{known.name}"'
        )
    logger.warning("the phone calls its chip '%s'; the bundle is made for %s, and runs there alone", has, made_for)
    return has, bundle
