"""transformers' fast tokenizers of T5's kind (`tokenizer.json`) as sentencepiece models, which `models.text` reads.

Both hold the same: a Unigram vocabulary of pieces and scores (arXiv:1804.10959), how text is normalised first (a
compiled table of characters, in JSON as base64), and whether bytes stand in for unknown characters. A sentencepiece
model is a protocol buffer (sentencepiece_model.proto); its few fields are written here as they go over the wire, for
the module that sentencepiece brings along for it asks for a newer protobuf than TensorFlow bears.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from pathlib import Path

from sora_jax.errors import InputError
from sora_jax.models.text import EOS, PAD, UNK

NAME = "tokenizer.json"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # ModelProto.SentencePiece.Type
# What sentencepiece does by itself (remove_extra_whitespaces), and is therefore no more to be asked of it.
SPACES = ("Strip", "WhitespaceSplit", "Metaspace")


def model(path: Path) -> bytes:
    """The sentencepiece model of a tokenizer.json, with the same ids.

    Special tokens other than T5's pad, end and unknown are found in texts as both kinds of tokenizer find them; those
    three are no text, whatever a text says. Raises InputError for a file that is no tokenizer of T5's kind.
    """
    try:
        told = json.loads(path.read_text())
        kind, added = told["model"]["type"], told["added_tokens"]
        if kind != "Unigram":
            raise InputError(f"{path} is a {kind} tokenizer; T5's are Unigram: give the folder of the text encoder")
        pieces = [(str(piece), float(score)) for piece, score in told["model"]["vocab"]]
        unknown, fallback = told["model"]["unk_id"], bool(told["model"].get("byte_fallback"))
        special = {int(token["id"]): str(token["content"]) for token in added}
        steps = [step for name in ("normalizer", "pre_tokenizer") for step in steps_of(told[name])]
        tables = [base64.b64decode(step["precompiled_charsmap"]) for step in steps if step["type"] == "Precompiled"]
        prefixes = [step for step in steps if step["type"] == "Metaspace"]
        prefix = all(s.get("prepend_scheme") != "never" and s.get("add_prefix_space", True) for s in prefixes)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is not a tokenizer.json of T5's kind") from None
    collapsed = {"Regex": " {2,}"}
    strange = {step["type"] for step in steps if step.get("pattern") != collapsed} - {"Precompiled", *SPACES}
    if strange or len(tables) > 1:
        raise InputError(f"{path} asks for {', '.join(sorted(strange)) or 'two tables'}, which sentencepiece cannot do")
    for i in sorted(special):
        if i == len(pieces):  # beyond the vocabulary, as T5's extra ids may be
            pieces.append((special[i], 0.0))
    ends = [pieces[i][0] if i < len(pieces) else None for i in (PAD, EOS)]
    if unknown != UNK or ends != [special.get(PAD), special.get(EOS)] or max(special) >= len(pieces):
        raise InputError(f"{path} does not begin with T5's padding, end and unknown piece, or leaves out ids")

    def type_of(i: int, piece: str) -> int:
        if i in (PAD, EOS, UNK):
            return UNKNOWN if i == UNK else CONTROL
        return USER_DEFINED if i in special else BYTE if fallback and re.fullmatch("<0x[0-9A-F]{2}>", piece) else NORMAL

    entries = (field(1, p) + field(2, s) + field(3, type_of(i, p)) for i, (p, s) in enumerate(pieces))
    trainer = field(3, 1) + field(4, len(pieces)) + field(35, fallback)  # model_type UNIGRAM, vocab_size, byte_fallback
    trainer += (
        field(40, UNK) + field(41, -1) + field(42, EOS) + field(43, PAD)
    )  # ids of unknown, beginning, end, padding
    trainer += field(45, pieces[UNK][0]) + field(47, pieces[EOS][0]) + field(48, pieces[PAD][0])
    normalizer = b"".join(field(2, table) for table in tables) + field(3, prefix)  # charsmap, add_dummy_prefix
    return b"".join(field(1, entry) for entry in entries) + field(2, trainer) + field(3, normalizer)


def steps_of(step: dict | None) -> list[dict]:
    """A normalizer or pre-tokenizer as the steps it is a sequence of."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [one for inner in step.get("normalizers", step.get("pretokenizers")) for one in steps_of(inner)]


def field(number: int, value: int | float | str | bytes) -> bytes:
    """One field of a protocol buffer: its number and wire type, then a varint, a float32, or a length and bytes."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; negative ones as 64 bits in two's complement."""
    value, out = value % (1 << 64), bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
