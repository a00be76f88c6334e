"""Answers a question on a Snapdragon's NPU; on x86, slowly, on QNN's simulator: python run.py "What is a shelf?"."""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import onnxruntime_qnn as qnn
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

HERE, PROVIDER = Path(__file__).parent, "QNNExecutionProvider"
TOKENS = {"key": 3, "value": 2}  # their axis in what is cached
OPTIONS = {
    "offload_graph_io_quantization": "0",
    "htp_performance_mode": "burst",
    "disable_file_mapped_weights": "1",  # which fails on some laptops: github.com/microsoft/foundry-local/issues/1124
}


def open_sessions(labels: list[str]) -> dict[str, Any]:
    folder = HERE / "simulator" if platform.machine() in ("x86_64", "AMD64") else HERE
    os.environ.setdefault("ADSP_LIBRARY_PATH", str(Path(qnn.get_library_path()).parent))  # where the NPU's code lies
    ort.set_default_logger_severity(3)  # errors
    ort.register_execution_provider_library(PROVIDER, qnn.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    if not devices:
        sys.exit("onnxruntime-qnn finds no device: no driver, or a Python for another processor")
    devices.sort(key=lambda found: found.device.type != ort.OrtHardwareDeviceType.NPU)
    sessions = {}
    for label in labels:
        options = ort.SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry("ep.share_ep_contexts", "1")  # graphs of a part are in one binary
        options.add_provider_for_devices(devices[:1], {"backend_path": qnn.get_qnn_htp_path(), **OPTIONS})
        sessions[label] = ort.InferenceSession(folder / f"{label}.onnx", options)
    return sessions


def empty_cache(sessions: dict[str, Any], host: dict[str, Any], context: int) -> dict[str, Any]:
    cache = {}
    for given in (given for session in sessions.values() for given in session.get_inputs() if "past_" in given.name):
        shape = np.delete(given.shape, TOKENS[given.name.split("_")[1]])
        cache[given.name] = np.full((context, *shape), host[given.name])  # positions first
    return cache


def read(graph: Any, ids: list[int], at: int, host: dict[str, Any], cache: dict[str, Any], sessions: Any) -> int:
    """The likeliest id behind `ids`, which stand at position `at`."""
    ar, past = graph["ar"], graph["context"] - graph["ar"]
    seen = np.tri(ar, graph["context"], past, dtype=np.int32)  # past positions, then the new ones causally
    seen[:, at:past] = 0
    values = {name: table[at : at + ar] for name, table in host.items() if "position_ids" in name}
    values["input_ids"] = np.array([*ids, *[0] * (ar - len(ids))], np.int32)
    values["attention_mask"] = host["attention_mask"][seen]
    values |= {name: np.moveaxis(slot[:past], 0, TOKENS[name.split("_")[1]]) for name, slot in cache.items()}
    for label in graph["parts"]:
        taken = {i.name: np.ascontiguousarray(values[i.name]).reshape(i.shape) for i in sessions[label].get_inputs()}
        names = [given.name for given in sessions[label].get_outputs()]
        values |= zip(names, sessions[label].run(names, taken), strict=True)
    for name, slot in cache.items():
        new = np.moveaxis(values[name.removesuffix("in") + "out"], TOKENS[name.split("_")[1]], 0)
        slot[at : at + len(ids)] = new[: len(ids)]
    return int(values["logits"][0, len(ids) - 1].argmax())


def main(question: str) -> None:
    model, chat = (json.loads((HERE / f).read_text(encoding="utf-8")) for f in ("model.json", "tokenizer_config.json"))
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    tokenizer.add_special_tokens(model["control"])  # in a text, too
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(chat["chat_template"])
    text = template.render(messages=[{"role": "user", "content": question}], add_generation_prompt=True, **chat)
    host, sessions = dict(np.load(HERE / "host.npz")), open_sessions([p for g in model["graphs"] for p in g["parts"]])
    cache = empty_cache(sessions, host, max(graph["context"] for graph in model["graphs"]))
    ids, at, said, shown = tokenizer.encode(text, add_special_tokens=False).ids, 0, list[int](), ""
    while fits := [graph for graph in model["graphs"] if at <= graph["context"] - graph["ar"]]:
        graph = next((graph for graph in fits if len(ids) > 1 or graph["ar"] == 1), fits[0])  # the largest come first
        chunk, ids = ids[: graph["ar"]], ids[graph["ar"] :]
        token = read(graph, chunk, at, host, cache, sessions)
        at += len(chunk)
        if not ids and token in model["eos"]:
            break
        if not ids:
            ids = [token]
            said.append(token)
            text = tokenizer.decode(said).rstrip("\N{REPLACEMENT CHARACTER}")  # half of a character
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text
    sys.stdout.write("\n")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
