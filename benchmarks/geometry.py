"""Sizes of Llama models for benchmarks, by name and from the command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Geometry:
    """What of a Llama's config.json decides how much work it is."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.hidden // self.heads


GEOMETRIES = {
    "7b": Geometry(hidden=4096, layers=32, heads=32, kv_heads=32, intermediate=11008, vocabulary=32000),
    "1.1b": Geometry(hidden=2048, layers=22, heads=32, kv_heads=4, intermediate=5632, vocabulary=32000),
    "tiny": Geometry(hidden=256, layers=2, heads=4, kv_heads=2, intermediate=704, vocabulary=2048),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that choose a geometry and change single sizes of it."""
    parser.add_argument("--geometry", choices=GEOMETRIES, default="7b")
    for size in fields(Geometry):
        parser.add_argument(f"--{size.name.replace('_', '-')}", type=int, help="instead of the geometry's")


def chosen(args: argparse.Namespace) -> Geometry:
    """The geometry that the flags describe."""
    given = {size.name: value for size in fields(Geometry) if (value := getattr(args, size.name)) is not None}
    return replace(GEOMETRIES[args.geometry], **given)
