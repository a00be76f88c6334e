"""How warm a phone is, as Android's thermal service says."""

from __future__ import annotations

import re
from dataclasses import dataclass

ASKED = "dumpsys thermalservice"
# android.hardware.thermal's TemperatureType
SKIN, NPU = 3, 9
_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")  # PowerManager's
_NOW = re.compile(r"Current temperatures from HAL:\n((?:\s+Temperature\{.*\n?)*)")
_ONE = re.compile(r"mValue=(-?[\d.]+), mType=(-?\d+), mName=([^,}]*)")


@dataclass(frozen=True)
class Thermal:
    """Degrees Celsius, None where the phone does not say; and Android's word for how far it throttles."""

    skin: float | None
    npu: float | None
    throttling: str

    def __str__(self) -> str:
        """Such as: skin 36.1 °C, NPU 52.0 °C, throttling none."""
        named = (("skin", self.skin), ("NPU", self.npu))
        said = [f"{name} {value:.1f} °C" for name, value in named if value is not None]
        return ", ".join([*said, f"throttling {self.throttling}"] if self.throttling else said) or "not told"


def thermal(said: str) -> Thermal:
    """What `dumpsys thermalservice` says now; its cached temperatures are of earlier."""
    now = _NOW.search(said)
    sensors = [(float(v), int(kind), name) for v, kind, name in _ONE.findall(now[1] if now else "")]
    named = [value for value, _, name in sensors if "skin" in name.lower()]  # vendors number kinds otherwise, too
    typed = [value for value, kind, _ in sensors if kind == SKIN]
    npu = [value for value, kind, _ in sensors if kind == NPU]
    status = re.search(r"Thermal Status: (\d+)", said)
    word = _STATUS[min(int(status[1]), len(_STATUS) - 1)] if status else ""
    return Thermal(max(named or typed, default=None), max(npu, default=None), word)
