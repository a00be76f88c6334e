"""Every chipset of the table is compiled for; the name and generation that the compiler then writes are the table's."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from llmconv import Bundle
from llmconv.target import Chipset
from llmconv_plugins.chipsets import CHIPSETS
from llmconv_plugins.qnn.compiler import GraphJob, compile_part
from llmconv_plugins.qnn.context_binary import read_info

CALLED = {  # by the compiler, which has one number for several
    "SC8280XP": "SC8280X",
    "SA8775P": "SA8255",
    "SA8797P": "SA8797",
    "SA8295P": "SA8295",
    "SA8540P": "SA8540",
}
SETTINGS = re.compile(rb"min_arch=(\d+);.*;soc_type=(\w+);", re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("chipset", CHIPSETS, ids=lambda chipset: chipset.model)
def test_a_part_of_the_small_model_compiles(chipset: Chipset, small_onnx: Bundle, tmp_path: Path) -> None:
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        pytest.skip("onnxruntime-qnn is not installed")
    parts = [graph.parts[-1] for graph in small_onnx.graphs.values()]
    jobs = [GraphJob(small_onnx.path(part.onnx), part.label) for part in parts]
    binary = tmp_path / "part.bin"
    compile_part(jobs, binary, soc_model=chipset.soc_model, htp_arch=chipset.htp_arch)
    assert read_info(binary).soc_model == int(chipset.soc_model)
    found = SETTINGS.search(binary.read_bytes())
    assert found is not None
    assert found[1].decode() == chipset.htp_arch
    assert found[2].decode() == CALLED.get(chipset.model, chipset.model)


def test_every_generation_is_there() -> None:
    assert {chipset.htp_arch for chipset in CHIPSETS} == {"68", "69", "73", "75", "79", "81"}


def test_no_two_chipsets_share_a_number() -> None:
    assert len({chipset.soc_model for chipset in CHIPSETS}) == len(CHIPSETS)
