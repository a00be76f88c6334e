"""What is said of a checkpoint before it is converted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from llmconv.choosing.inspected import inspect

TINY = Path(__file__).parents[2] / "recipes" / "tiny_llama"


def test_a_page_of_facts(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY, model, ignore=shutil.ignore_patterns("*.txt", "*.py"))
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    found = json.loads(json.dumps(inspect(str(model)).to_dict()))
    facts = found["facts"]
    assert (facts["family"], facts["layers"], facts["context"], facts["licence"]) == ("llama", 4, 256, "mit")
    assert facts["parameters"] == 4_262_144
    assert facts["stored"] == {"F16": 39}
    assert (facts["bos"], facts["eos"], facts["chat_template"]) == ("1 <s>", ["2 </s>"], False)
    assert facts["adapters"] == [f"{tmp_path / 'lora'} (of org/base)"]
    assert {
        key: value
        for entry in found["recipe"]
        for key, value in entry.items()
        if "parts" in entry["setting"] and key != "why"
    } == {"setting": "passes.split_model.parts", "value": 1}
    assert found["plan"]["parts"] == 1
    assert found["plan"]["weight_bytes"] > facts["parameters"]


def test_an_adapter_is_a_page_of_its_own(tmp_path: Path) -> None:
    keys = {
        **{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["v_proj", "q_proj"]},
        **{"base_model_name_or_path": "org/base", "modules_to_save": ["lm_head"], "rank_pattern": {}},
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(keys))
    save_file({"a": torch.zeros(2, 2), "b": torch.zeros(2).half()}, tmp_path / "adapter_model.safetensors")
    found = inspect(str(tmp_path))
    assert found.facts == {
        **{"adapter": str(tmp_path), "kind": "LORA, rsLoRA", "base": "org/base", "rank": 4, "alpha": 8},
        **{"changes": ["q_proj", "v_proj"], "replaces": ["lm_head"], "stored": {"F32": 1, "F16": 1}},
    }
    assert found.chosen is None
    assert found.unusual == (f"an adapter alone; give its base as the model, and this as --adapter {tmp_path}",)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"1")
    assert "not a safetensors file" in inspect(str(tmp_path)).unusual[1]


def test_what_is_wrong_is_said_and_the_rest_as_well(tmp_path: Path) -> None:
    shutil.copyfile(TINY / "config.json", tmp_path / "config.json")
    found = inspect(str(tmp_path))
    assert found.chosen is not None
    assert [line.partition(": ")[2] for line in found.unusual[:2]] == [
        "missing; is the download complete?",
        "no tokenizer.json or tokenizer.model; copy the model's tokenizer there",
    ]
