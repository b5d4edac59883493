"""A tokenizer.json gives a sentencepiece model with transformers' ids, and what is none of T5's is refused."""

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from safetensors import numpy as safetensors

from sora_jax.errors import InputError
from sora_jax.models.text import Tokenizer
from sora_jax.weights import convert, unigram

FIXTURES = Path(__file__).parent / "fixtures"
TEXTS = [
    "a red circle moves right", "", "  two   spaces ", "ﬁne ＦＵＬＬ width… ½", "日本語 🎬🎬 café", "x",
    "a<extra_id_0>b", "<unk> </s> <pad>", "don't, ever; «quote»", "red red red " * 20,
]  # fmt: skip


def fields(data: bytes, number: int) -> list:
    """The values of a field of a protocol buffer, read back."""
    found, at = [], 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            at, byte = at + 1, data[at]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        size = {2: varint, 0: lambda: 0, 5: lambda: 4, 1: lambda: 8}[key & 7]()
        value = varint() if key & 7 == 0 else data[at : at + size]
        at += size
        found += [value] if key >> 3 == number else []
    return found


@pytest.fixture(scope="module", params=[False, True], ids=["characters", "bytes"])
def trained(request, tmp_path_factory) -> tuple[sentencepiece.SentencePieceProcessor, dict]:
    """A sentencepiece model of T5's kind (NFKC, extra ids), and the tokenizer.json that transformers makes of such a
    one: its pieces, scores and table of characters."""
    root = tmp_path_factory.mktemp("unigram")
    words = ["red", "green", "blue", "circle", "star", "moves", "left", "falls", "bounces", "a", "the", "café", "don't"]
    rng = np.random.default_rng(0)
    (root / "text").write_text("\n".join(" ".join(rng.choice(words, 6)) for _ in range(300)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(root / "text"), model_prefix=str(root / "spiece"), model_type="unigram", vocab_size=400,
        hard_vocab_limit=False, byte_fallback=request.param, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        num_threads=1, user_defined_symbols=["<extra_id_0>"],
    )  # fmt: skip
    spm = sentencepiece.SentencePieceProcessor(model_file=str(root / "spiece.model"))
    [normalizer] = fields((root / "spiece.model").read_bytes(), 3)
    [table] = fields(normalizer, 2)
    vocab = [[spm.id_to_piece(i), spm.get_score(i)] for i in range(spm.vocab_size())]
    special = [i for i in range(spm.vocab_size()) if spm.is_control(i) or spm.is_unknown(i)]
    special += [i for i, (piece, _) in enumerate(vocab) if piece.startswith("<extra_id")]
    spaces = [{"type": "Strip", "strip_left": False, "strip_right": True}]
    spaces += [{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]
    table = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
    return spm, {
        "added_tokens": [{"id": i, "content": vocab[i][0], "special": True} for i in special],
        "normalizer": {"type": "Sequence", "normalizers": [table, *spaces]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": request.param},
    }


def test_the_ids_are_those_of_the_model_it_was_made_of(trained, tmp_path):
    spm, told = trained
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    made = sentencepiece.SentencePieceProcessor(model_proto=unigram.model(tmp_path / "tokenizer.json"))
    assert [made.id_to_piece(i) for i in range(made.vocab_size())] == [piece for piece, _ in told["model"]["vocab"]]
    assert (made.pad_id(), made.eos_id(), made.unk_id(), made.bos_id()) == (0, 1, 2, -1)
    for text in TEXTS:
        assert made.encode(text) == spm.encode(text), text
    assert made.encode("ﬁ") != [2] or not told["model"]["byte_fallback"]


def test_the_ids_are_those_of_transformers(tmp_path):
    """The fixture's ids are what T5TokenizerFast made of the fixture's texts (tests/parity/wan_text.py)."""
    shutil.copytree(FIXTURES / "wan", tmp_path / "wan")
    (tmp_path / "wan" / "tokenizer" / "spiece.model").unlink()
    assert convert.import_([tmp_path / "wan" / "tokenizer"], tmp_path / "ours")["tokenizer"]
    convert.import_([tmp_path / "wan" / "tokenizer" / "tokenizer.json"], tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == (tmp_path / "ours" / "tokenizer.model").read_bytes()
    ids = safetensors.load_file(FIXTURES / "wan_text.safetensors")["ids"]
    tokenizer = Tokenizer(tmp_path / "ours", rows=ids.shape[1], clean="wan")
    for facts, theirs in zip(json.loads((FIXTURES / "wan_text.json").read_text()), ids, strict=True):
        assert tokenizer.encode(facts["prompt"]) == theirs.tolist()


def test_what_is_no_tokenizer_of_t5_gets_one_sentence(trained, tmp_path):
    def refused(about: str, **changes) -> None:
        (tmp_path / "tokenizer.json").write_text(json.dumps(trained[1] | changes))
        with pytest.raises(InputError, match=about) as error:
            unigram.model(tmp_path / "tokenizer.json")
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)

    model = trained[1]["model"]
    refused("is a BPE tokenizer", model={"type": "BPE"})
    refused("asks for Lowercase", normalizer={"type": "Lowercase"})
    refused("asks for Replace", normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "b"})
    refused("does not begin with T5's", model=model | {"unk_id": 0})
    refused("leaves out ids", added_tokens=[*trained[1]["added_tokens"], {"id": 10**6, "content": "<far>"}])
    refused("is not a tokenizer.json", model=None)
    refused("is not a tokenizer.json", model=model | {"vocab": [1]})
