"""Write a checkpoint of any Llama geometry with random weights, in Hugging Face layout, near the speed of the disk.

Run: python benchmarks/make_checkpoint.py FOLDER [--geometry 7b] [--layers 2] [--shard-bytes 5000000000] [--seed 0]
Each tensor is a run through one block of normal noise in fp16, so that a piece of one tensor is in memory at a time.
Deviations are those with which trainings of deep models begin, so that the residual stream outweighs what a layer adds:
embeddings 1, projections columns ** -0.5, those back into the stream an eighth of that; norms lie around 1. The
tokenizer is the tiny recipe's: its 2048 pieces are the first ids of whatever vocabulary there is, and a model of
random weights answers nonsense anyway.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from geometry import Geometry, add_arguments, chosen
from numpy.typing import NDArray

TOKENIZER = Path(__file__).parents[1] / "recipes/tiny_llama/tokenizer.model"
BLOCK = 33_554_393  # values of noise, 64 MiB; a prime, so that the rows of a tensor differ
STRIDE = 7_919_317  # values between the places in the block where two tensors begin

Shape = tuple[int, ...]


class Noise:
    """Seeded normal noise, in runs of any length."""

    def __init__(self, seed: int) -> None:
        self._block = np.random.default_rng(seed).standard_normal(BLOCK, dtype=np.float32)
        self.scaled = cache(self._scaled)  # of one geometry there are five distributions

    def _scaled(self, mean: float, deviation: float) -> NDArray[np.float16]:
        return (mean + deviation * self._block).astype(np.float16)

    def pieces(self, index: int, name: str, shape: Shape) -> Iterator[NDArray[np.float16]]:
        """The values of tensor number `index`, flat, in pieces."""
        block = self.scaled(*_distribution(name, shape))
        left, start = math.prod(shape), index * STRIDE % BLOCK
        while left:
            piece = block[start : start + left]
            yield piece
            left, start = left - len(piece), 0


def _distribution(name: str, shape: Shape) -> tuple[float, float]:
    """Mean and deviation of a tensor."""
    if len(shape) == 1:
        return 1.0, 0.1
    if "embed_tokens" in name:
        return 0.0, 1.0
    back = 8.0 if "o_proj" in name or "down_proj" in name else 1.0
    return 0.0, shape[-1] ** -0.5 / back


def tensors(geometry: Geometry) -> dict[str, Shape]:
    """Every tensor of the checkpoint, in order."""
    hidden, inner, kv = geometry.hidden, geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (inner, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, inner),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (geometry.intermediate, hidden),
        "mlp.up_proj": (geometry.intermediate, hidden),
        "mlp.down_proj": (hidden, geometry.intermediate),
    }
    return {
        "model.embed_tokens.weight": (geometry.vocabulary, hidden),
        **{f"model.layers.{i}.{name}.weight": s for i in range(geometry.layers) for name, s in layer.items()},
        "model.norm.weight": (hidden,),
        "lm_head.weight": (geometry.vocabulary, hidden),
    }


def bytes_of(shape: Shape) -> int:
    """Bytes of an fp16 tensor."""
    return 2 * math.prod(shape)


def shards(shapes: dict[str, Shape], limit: int) -> list[list[str]]:
    """Names of tensors, a list a shard; each holds at most `limit` bytes, or one tensor that is larger."""
    found: list[list[str]] = []
    size = limit
    for name, shape in shapes.items():
        if size + bytes_of(shape) > limit:
            found.append([])
            size = 0
        found[-1].append(name)
        size += bytes_of(shape)
    return found


def write_shard(file: BinaryIO, names: list[str], shapes: dict[str, Shape], noise: Noise) -> None:
    """One safetensors file: the length of the header, the header, the tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + bytes_of(shapes[name])
        header[name] = {"dtype": "F16", "shape": shapes[name], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    places = {name: i for i, name in enumerate(shapes)}
    for name in names:
        for piece in noise.pieces(places[name], name, shapes[name]):
            file.write(piece.data)


def config(geometry: Geometry, context: int) -> dict[str, object]:
    """config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float16",
        "vocab_size": geometry.vocabulary,
        "hidden_size": geometry.hidden,
        "intermediate_size": geometry.intermediate,
        "num_hidden_layers": geometry.layers,
        "num_attention_heads": geometry.heads,
        "num_key_value_heads": geometry.kv_heads,
        "max_position_embeddings": context,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def write_checkpoint(folder: Path, geometry: Geometry, *, context: int, shard_bytes: int, seed: int) -> int:
    """Write the whole folder, which must not exist; gives the bytes of its weights."""
    folder.mkdir(parents=True)
    shapes, noise = tensors(geometry), Noise(seed)
    split = shards(shapes, shard_bytes)
    files = {f"model-{i + 1:05d}-of-{len(split):05d}.safetensors": names for i, names in enumerate(split)}
    for file, names in files.items():
        with (folder / file).open("wb") as stream:
            write_shard(stream, names, shapes, noise)
    total = sum(bytes_of(shape) for shape in shapes.values())
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(config(geometry, context), indent=2))
    shutil.copyfile(TOKENIZER, folder / "tokenizer.model")
    return total


def main() -> None:
    """Read the command line, write, and say how fast it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to write; must not exist")
    add_arguments(parser)
    parser.add_argument("--context", type=int, default=4096, help="max_position_embeddings")
    parser.add_argument("--shard-bytes", type=int, default=5_000_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.folder.exists():
        parser.error(f"{args.folder} exists; name a new folder")
    start = time.perf_counter()
    total = write_checkpoint(
        args.folder, chosen(args), context=args.context, shard_bytes=args.shard_bytes, seed=args.seed
    )
    seconds = time.perf_counter() - start
    print(f"{args.folder}: {total / 1e9:.2f} GB in {seconds:.1f} s, {total / 1e6 / seconds:.0f} MB/s")


if __name__ == "__main__":
    main()
