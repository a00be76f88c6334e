"""Child process: read a context binary through libQnnSystem. Run by `context_binary.py`.

The structures follow the layout of QNN's public C interface (system API 1.x, binary info version 3).
"""

from __future__ import annotations

import ctypes
import json
from ctypes import POINTER, Structure, Union, byref, c_char_p, c_float, c_int32, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, ClassVar

from llmconv_plugins.qnn.child import JOB, RESULT, library_folder

Fields = list[tuple[str, Any]]
DTYPES = {
    0x08: "int8",
    0x16: "int16",
    0x32: "int32",
    0x64: "int64",
    0x108: "uint8",
    0x116: "uint16",
    0x132: "uint32",
    0x216: "float16",
    0x232: "float32",
    0x308: "int8",
    0x316: "int16",
    0x332: "int32",
    0x408: "uint8",
    0x416: "uint16",
}
SCALE_OFFSET = 0  # quantization encoding: one scale and offset a tensor
DEFINED = 1


class Version(Structure):
    _fields_: ClassVar[Fields] = [("major", c_uint32), ("minor", c_uint32), ("patch", c_uint32)]


class ScaleOffset(Structure):
    _fields_: ClassVar[Fields] = [("scale", c_float), ("offset", c_int32)]


class QuantizeUnion(Union):
    _fields_: ClassVar[Fields] = [("scale_offset", ScaleOffset), ("other", c_uint64 * 4)]


class QuantizeParams(Structure):
    _fields_: ClassVar[Fields] = [("definition", c_uint32), ("encoding", c_uint32), ("params", QuantizeUnion)]


class TensorBody(Structure):
    _fields_: ClassVar[Fields] = [
        ("id", c_uint32),
        ("name", c_char_p),
        ("type", c_uint32),
        ("format", c_uint32),
        ("dtype", c_uint32),
        ("quantize", QuantizeParams),
        ("rank", c_uint32),
        ("dimensions", POINTER(c_uint32)),
        ("memory", c_uint32),
        ("data", c_void_p),
        ("data_size", c_uint32),
        ("dynamic", c_void_p),
        ("sparse", c_uint32 * 3),
        ("produced", c_uint8),
    ]


class Tensor(Structure):
    _fields_: ClassVar[Fields] = [("version", c_uint32), ("body", TensorBody)]


class Graph(Structure):
    _fields_: ClassVar[Fields] = [
        ("version", c_uint32),
        ("name", c_char_p),
        ("input_count", c_uint32),
        ("inputs", POINTER(Tensor)),
        ("output_count", c_uint32),
        ("outputs", POINTER(Tensor)),
        ("updateable_count", c_uint32),
        ("updateable", c_void_p),
        ("blob_size", c_uint32),
        ("blob", c_void_p),
        ("first_op", c_uint32),
        ("last_op", c_uint32),
    ]


class BinaryV3(Structure):
    _fields_: ClassVar[Fields] = [
        ("backend", c_uint32),
        ("build", c_char_p),
        ("core_api", Version),
        ("backend_api", Version),
        ("soc_version", c_char_p),
        ("context_version", Version),
        ("context_size", c_uint64),
        ("tensor_count", c_uint32),
        ("tensors", c_void_p),
        ("graph_count", c_uint32),
        ("graphs", POINTER(Graph)),
        ("platform", c_void_p),
        ("metadata_size", c_uint32),
        ("metadata", c_void_p),
        ("soc_model", c_uint32),
    ]


class Binary(Structure):
    _fields_: ClassVar[Fields] = [("version", c_uint32), ("v3", BinaryV3)]


class Provider(Structure):
    _fields_: ClassVar[Fields] = [
        ("backend", c_uint32),
        ("name", c_char_p),
        ("api", Version),
        ("create", ctypes.CFUNCTYPE(c_uint64, POINTER(c_void_p))),
        (
            "get_info",
            ctypes.CFUNCTYPE(c_uint64, c_void_p, c_void_p, c_uint64, POINTER(POINTER(Binary)), POINTER(c_uint64)),
        ),
    ]


def read(binary: Path) -> dict[str, Any]:
    """What the library says of a binary."""
    library = ctypes.CDLL(str(library_folder() / "libQnnSystem.so"))
    providers, count = POINTER(POINTER(Provider))(), c_uint32()
    if library.QnnSystemInterface_getProviders(byref(providers), byref(count)) != 0 or not count.value:
        return {"error": "libQnnSystem offers no interface"}
    system = providers[0].contents
    handle, info, size = c_void_p(), POINTER(Binary)(), c_uint64()
    data = binary.read_bytes()
    buffer = ctypes.create_string_buffer(data, len(data))
    if system.create(byref(handle)) != 0:
        return {"error": "libQnnSystem cannot create a context"}
    status = system.get_info(handle, buffer, len(data), byref(info), byref(size))
    if status != 0:
        return {"error": f"is no QNN context binary that libQnnSystem can read (error {status})"}
    if info.contents.version != 3:
        return {"error": f"has binary info version {info.contents.version}; this version of llmconv reads 3"}
    found = info.contents.v3
    graphs = [found.graphs[i] for i in range(found.graph_count)]
    return {
        "build": found.build.decode(),
        "soc_model": found.soc_model,
        "graphs": [
            {
                "name": g.name.decode(),
                "inputs": [_tensor(g.inputs[i]) for i in range(g.input_count)],
                "outputs": [_tensor(g.outputs[i]) for i in range(g.output_count)],
            }
            for g in graphs
        ],
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    body = tensor.body
    quantized = body.quantize.definition == DEFINED and body.quantize.encoding == SCALE_OFFSET
    params = body.quantize.params.scale_offset
    return {
        "name": body.name.decode(),
        "shape": [body.dimensions[i] for i in range(body.rank)],
        "dtype": DTYPES.get(body.dtype, hex(body.dtype)),
        "scale": params.scale if quantized else None,
        "zero_point": -params.offset if quantized else None,
    }


if __name__ == "__main__":
    Path(RESULT).write_text(json.dumps(read(Path(json.loads(Path(JOB).read_text())["binary"]))))
