"""What a SentencePiece model file holds; the package's own messages load with one major release of protobuf alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from llmconv.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # ModelProto.SentencePiece.Type
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType

_FIELD = descriptor_pb2.FieldDescriptorProto
# message -> its fields that are needed: name, number, type, default; sentencepiece_model.proto has the rest
_MESSAGES: dict[str, tuple[tuple[str, int, Any, str], ...]] = {
    "Piece": (
        ("piece", 1, _FIELD.TYPE_STRING, ""),
        ("score", 2, _FIELD.TYPE_FLOAT, "0"),
        ("type", 3, _FIELD.TYPE_INT32, "1"),
    ),
    "Trainer": (
        ("model_type", 3, _FIELD.TYPE_INT32, "1"),
        ("treat_whitespace_as_suffix", 24, _FIELD.TYPE_BOOL, "false"),
        ("byte_fallback", 35, _FIELD.TYPE_BOOL, "false"),
        ("unk_id", 40, _FIELD.TYPE_INT32, "0"),
    ),
    "Normalizer": (
        ("precompiled_charsmap", 2, _FIELD.TYPE_BYTES, ""),
        ("add_dummy_prefix", 3, _FIELD.TYPE_BOOL, "true"),
        ("remove_extra_whitespaces", 4, _FIELD.TYPE_BOOL, "true"),
        ("escape_whitespaces", 5, _FIELD.TYPE_BOOL, "true"),
    ),
}
_PARTS = (("pieces", 1, "Piece"), ("trainer_spec", 2, "Trainer"), ("normalizer_spec", 3, "Normalizer"))


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceFile:
    """A model.

    Attributes:
        unknown: the id of the piece for what nothing else covers.
        character_map: the compiled normalization of characters; empty for none.
        prefix: whether a space is put before text.
        strips_spaces: whether spaces at the ends and second spaces are dropped.
    """

    file: Path
    pieces: tuple[Piece, ...]
    algorithm: int
    unknown: int
    byte_fallback: bool
    spaces_as_suffixes: bool
    character_map: bytes
    prefix: bool
    strips_spaces: bool
    escapes_spaces: bool

    @classmethod
    def read(cls, file: Path) -> SentencePieceFile:
        """Read a `tokenizer.model`.

        Raises:
            CheckpointError: it is damaged.
        """
        proto = _model_class()()
        try:
            proto.ParseFromString(file.read_bytes())
        except (OSError, DecodeError) as error:
            raise CheckpointError(f"{file}: not a SentencePiece model ({error})") from error
        trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
        return cls(
            file=file,
            pieces=tuple(Piece(p.piece, p.score, p.type) for p in proto.pieces),
            algorithm=trainer.model_type,
            unknown=trainer.unk_id,
            byte_fallback=trainer.byte_fallback,
            spaces_as_suffixes=trainer.treat_whitespace_as_suffix,
            character_map=normalizer.precompiled_charsmap,
            prefix=normalizer.add_dummy_prefix,
            strips_spaces=normalizer.remove_extra_whitespaces,
            escapes_spaces=normalizer.escape_whitespaces,
        )


def _model_class() -> Any:
    """The message class, in a pool of its own: the package's own description may be loaded beside it."""
    package = "llmconv.sentencepiece"
    schema = descriptor_pb2.FileDescriptorProto(name="llmconv_sentencepiece.proto", package=package, syntax="proto2")
    for message, fields in _MESSAGES.items():
        description = schema.message_type.add(name=message)
        for name, number, kind, default in fields:
            description.field.add(
                name=name, number=number, type=kind, label=_FIELD.LABEL_OPTIONAL, default_value=default
            )
    model = schema.message_type.add(name="Model")
    for name, number, message in _PARTS:
        label = _FIELD.LABEL_REPEATED if name == "pieces" else _FIELD.LABEL_OPTIONAL
        type_name = f".{package}.{message}"
        model.field.add(name=name, number=number, type=_FIELD.TYPE_MESSAGE, type_name=type_name, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(schema)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.Model"))
