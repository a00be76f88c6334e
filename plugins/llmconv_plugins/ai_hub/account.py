"""The user's account on AI Hub: whether the client is configured, and which of its devices a recipe means."""

from __future__ import annotations

import configparser
import importlib.util
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from llmconv import BackendError
from llmconv.target import Chipset

INI_VARIABLE = "QAIHUB_CLIENT_INI"  # as the client has it
INI = "~/.qai_hub/client.ini"
WANTED = ("api_token", "api_url", "web_url")
REMEDY = (
    "configure the client ('qai-hub configure --api_token TOKEN', the token is on your account page), "
    "or compile here with --backend qnn"
)
HTP, SHARES = "hexagon:v", "htp-supports-weight-sharing:true"  # attributes of devices


@dataclass(frozen=True)
class HubDevice:
    """A device that AI Hub offers.

    Attributes:
        os: version of the newest system that it runs.
        attributes: such as "hexagon:v73".
    """

    name: str
    os: str
    attributes: tuple[str, ...]


def check_configuration() -> None:
    """Whether the client is installed and configured; reads its file, asks nobody.

    Raises:
        BackendError: it is not; says what to do.
    """
    if importlib.util.find_spec("qai_hub") is None:
        raise BackendError(
            "backend 'qnn_ai_hub' needs the AI Hub client: pip install qai-hub, or compile here with --backend qnn"
        )
    file = Path(os.environ.get(INI_VARIABLE, INI)).expanduser()
    if not file.is_file():
        raise BackendError(f"AI Hub: no client configuration {file}; {REMEDY}")
    parser = configparser.ConfigParser()
    try:
        parser.read(file, encoding="utf-8")
        section = dict(parser["api"]) if parser.has_section("api") else {}
    except (configparser.Error, UnicodeDecodeError) as error:  # whose message may quote a line, and the token in it
        raise BackendError(f"AI Hub: {file} is no configuration of the client; {REMEDY}") from error
    for key in WANTED:
        if not section.get(key):
            raise BackendError(f"AI Hub: {file} has no {key} in its section [api]; {REMEDY}")


def find_device(devices: Iterable[HubDevice], name: str | None, chipset: Chipset) -> HubDevice:
    """The device that compiles and measures.

    Args:
        devices: those that AI Hub offers.
        name: as AI Hub has it; by default the first device of the chipset that AI Hub has.

    Raises:
        BackendError: AI Hub has no such device, or its NPU is of another generation than the recipe's target.
    """
    offered = {device.name: device for device in devices}
    wanted = [name] if name is not None else list(chipset.devices) or [chipset.name]
    found = next((offered[candidate] for candidate in wanted if candidate in offered), None)
    if found is None:
        what = f"backend.device: AI Hub has no device '{name}'" if name else f"AI Hub has no {_either(wanted)}"
        near = get_close_matches(wanted[0], offered, n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}" if near else f"it has {len(offered)} devices"
        raise BackendError(f"{what}; {hint}; 'qai-hub list-devices' lists all")
    generation = next((a.removeprefix(HTP) for a in found.attributes if a.startswith(HTP)), None)
    if generation != chipset.htp_arch:
        has = f"HTP v{generation}" if generation else "no HTP"
        raise BackendError(
            f"backend.device: {found.name} has {has}, but target {chipset.name} has HTP v{chipset.htp_arch}; "
            f"choose a device such as {_either(chipset.devices or [chipset.name])}, or another target"
        )
    return found


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)
