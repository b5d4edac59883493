"""Laws of the text: any unicode comes back, packed == alone, T5's buckets as published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.errors import InputError
from sora_jax.models.text import EOS, TextEncoder, Tokenizer, buckets_of, clean, train_tokenizer

CAPTIONS = [f"a {size} {color} {shape} moves {way}"
            for size in ("small", "large") for color in ("red", "blue", "green")
            for shape in ("circle", "square", "star") for way in ("left", "right", "up")]  # fmt: skip
UNICODE = [
    "",
    "a red square moves left",
    "  many \t\n spaces\u00a0here \x00 and\x07control ",
    "日本語の文章、العربية, हिन्दी, ไทย, עברית",
    "👩‍👩‍👧‍👦 🏳️‍🌈 \U0010ffff \ud800 lone surrogate",
    "e\u0301 is é; ﬁ stays a ligature; Å Å",
    "&lt;b&gt; &amp;quot;twice&amp;quot; &eacute;",
    "<pad> </s> <unk> <0x41> <s> ▁▁▂",
    "".join(map(chr, range(32, 0x250))),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(CAPTIONS, tmp_path_factory.mktemp("text") / "tokenizer.model", vocab=400)


@pytest.mark.parametrize("text", UNICODE)
def test_any_unicode_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids[-1] == EOS and ids.count(EOS) == 1 and max(ids) < tokenizer.vocab
    assert tokenizer.decode(ids) == clean(text)
    assert clean(clean(text)) == clean(text) or "&" in text


def test_random_unicode_comes_back(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = "".join(chr(c) for c in rng.integers(1, 0x110000, 20))
        assert tokenizer.decode(tokenizer.encode(text)) == clean(text)


def test_clean_says_what_a_prompt_is():
    assert clean("  a&nbsp;b &amp;amp; c\r\n\te\u0301 ") == "a b & c é"


def test_the_tokenizer_is_deterministic_and_portable(tokenizer, tmp_path):
    again = train_tokenizer(CAPTIONS, tmp_path / "again.model", vocab=400)
    assert again.data == tokenizer.data == (tmp_path / "again.model").read_bytes()
    assert Tokenizer(tmp_path / "again.model").encode("a red star") == tokenizer.encode("a red star")
    assert len(tokenizer.encode("a red star moves left")) == 6  # words of the world are single pieces


def test_a_bad_tokenizer_gets_one_sentence(tmp_path):
    (tmp_path / "bad.model").write_bytes(b"not a model")
    for call in (
        lambda: Tokenizer(tmp_path / "bad.model"),
        lambda: Tokenizer(tmp_path / "missing.model"),
        lambda: train_tokenizer([], tmp_path / "x.model"),
        lambda: train_tokenizer(CAPTIONS, tmp_path / "x.model", vocab=10),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (8, 32)])
def test_buckets_are_the_published_rule(buckets, max_distance):
    """Directly, in whole numbers: with q = buckets/4, distance r >= q lies in bucket q + j iff (r/q)^q >= (max/q)^j."""
    quarter, table = buckets // 4, buckets_of(300, buckets, max_distance)
    for i, j in np.ndindex(300, 300):
        r, after = abs(i - j), buckets // 2 if j > i else 0
        want = r
        if r >= quarter:
            steps = [s for s in range(quarter) if r**quarter * quarter**s >= max_distance**s * quarter**quarter]
            want = quarter + max(steps)
        if i in (0, 150, 299):
            assert table[i, j] == after + want, (i, j)
    assert table.max() == buckets - 1 and table.min() == 0


@pytest.fixture(scope="module", params=[False, True], ids=["t5", "umt5"])
def encoder(request):
    model = TextEncoder(60, width=32, depth=2, heads=4, head_width=8, mlp=48, bias_every_layer=request.param)
    params = model.init(jax.random.key(0), jnp.zeros((1, 24), int), jnp.ones((1, 24), int))["params"]
    return params, jax.jit(
        lambda txt, seg: model.apply({"params": params}, jnp.asarray(txt)[None], jnp.asarray(seg)[None])[0]
    )


def row(*texts):
    txt, seg = np.zeros(24, int), np.zeros(24, int)
    at = 0
    for i, text in enumerate(texts, 1):
        txt[at : at + len(text)], seg[at : at + len(text)] = text, i
        at += len(text)
    return txt, seg


def test_packed_is_alone_and_neighbours_do_not_matter(encoder):
    _, encode = encoder
    rng = np.random.default_rng(1)
    a, b, c, d = (rng.integers(3, 60, n) for n in (7, 9, 5, 9))
    packed = np.asarray(encode(*row(a, b, c)))
    for text, start in ((a, 0), (b, 7), (c, 16)):
        alone = np.asarray(encode(*row(text)))[: len(text)]
        np.testing.assert_allclose(packed[start : start + len(text)], alone, atol=1e-5)
    changed = np.asarray(encode(*row(a, d, c)))
    np.testing.assert_array_equal(changed[:7], packed[:7])
    np.testing.assert_array_equal(changed[16:21], packed[16:21])
    assert np.abs(changed[7:16] - packed[7:16]).max() > 0.1
    assert not packed[21:].any()  # padding is exact zeros


def test_order_matters_only_through_the_bias(encoder):
    params, encode = encoder
    a = np.arange(3, 13)
    forward, backward = np.asarray(encode(*row(a)))[:10], np.asarray(encode(*row(a[::-1])))[:10][::-1]
    assert np.abs(forward - backward).max() > 1e-3
    shape = params["blocks"]["bias"].shape if "bias" in params["blocks"] else params["bias"].shape
    assert shape == ((2, 32, 4) if "bias" in params["blocks"] else (32, 4))
    assert set(params) == {"embed", "blocks", "norm"} | ({"bias"} if "bias" in params else set())
