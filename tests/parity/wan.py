"""The parts of a Wan pipeline, of random weights, as diffusers saves them: tests/fixtures/wan/, for the other scripts.

The text encoder is umT5 of 2 layers, the transformer has 2 blocks of 2 heads of width 14, whose rotary dimensions
divide unequally (6, 4, 4) as the published 128 do (44, 42, 42). The tokenizer is a sentencepiece model of few pieces.
"""

import io
import shutil

import sentencepiece
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from peer import FIXTURES, roughened, seeded
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

HOME = FIXTURES / "wan"
WORDS = """a red circle moves right and a small blue star falls, bounces; it's "quoted" text: 12 green squares (spin)
slowly over the old town of Zürich, naïve café, while the camera pans left & up! the large yellow triangle grows? yes
- it shrinks. e-mail, rock'n'roll, 3.14 metres, one two three four five six seven eight nine ten"""


def transformer(generator):
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=14, in_channels=16, out_channels=16, text_dim=32, ffn_dim=48,
        num_layers=2,
    )  # fmt: skip
    return roughened(model, generator)


def text_encoder(generator, vocab: int):
    config = UMT5Config(vocab_size=vocab, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return roughened(UMT5EncoderModel(config), generator)


def vae(generator):
    return roughened(AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1), generator)


def tokenizer() -> bytes:
    """A unigram model as umT5's: no byte fallback, ids 0 and 1 for padding and the end."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS.split("\n") + WORDS.split()), model_writer=model, model_type="unigram",
        vocab_size=150, hard_vocab_limit=False, pad_id=0, eos_id=1, bos_id=-1, unk_id=2, num_threads=1,
        normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


if __name__ == "__main__":
    generator = seeded()
    shutil.rmtree(HOME, ignore_errors=True)
    transformer(generator).save_pretrained(HOME / "transformer")
    pieces = tokenizer()
    (HOME / "tokenizer").mkdir()
    (HOME / "tokenizer" / "spiece.model").write_bytes(pieces)
    T5Tokenizer.from_pretrained(HOME / "tokenizer", extra_ids=0).save_pretrained(HOME / "tokenizer")
    vocab = sentencepiece.SentencePieceProcessor(model_proto=pieces).vocab_size()
    text_encoder(generator, vocab).save_pretrained(HOME / "text_encoder")
    vae(generator).save_pretrained(HOME / "vae")
    for path in sorted(HOME.rglob("*")):
        if path.is_file():
            print(f"{path.relative_to(FIXTURES.parent.parent)}: {path.stat().st_size:,} bytes")
