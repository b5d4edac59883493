"""Laws of the expander: packed == alone, cached decoding == a full pass, same seed same text, nothing is lost."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.cli import main
from sora_jax.data import packing, worlds
from sora_jax.errors import InputError
from sora_jax.expansion import expand, long_of, lost, passed
from sora_jax.model import BUNDLED, Model, expander_shapes, find, flat, load, unflat
from sora_jax.models.captioner import tell
from sora_jax.models.text import EOS, Tokenizer
from sora_jax.pod import mesh
from sora_jax.train import configs, expander_task

VOCAB, WORDS, ROW, TEXT = 1024, 12, 24, 32


@pytest.fixture(scope="module")
def model():
    fields = dict(width=24, depth=1, text_depth=1, tell_depth=1, heads=2, mlp=32, vocab=VOCAB)
    rng, leaves = np.random.default_rng(0), flat(expander_shapes(fields))  # no zeros: every path must carry something
    params = {
        name: (name.endswith("scale") + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)
        for name, leaf in leaves.items()
    }
    params = {"expander": jax.tree.map(jnp.asarray, unflat(params))}
    how = {"prompt": ROW, "tokens": WORDS, "top_p": 0.9}
    return Model({"expander": fields, "expand": how}, params, Tokenizer(find("tiny")))


@pytest.fixture(scope="module")
def full(model):
    """Logits of packed pairs, jitted."""
    apply = jax.jit(model.expander.apply)

    def logits(pairs):
        batch = packing.collate([pairs], ROW, TEXT, 4)
        rows = (batch[name] for name in ("x", "seg", "txt", "txt_seg"))
        return np.asarray(apply({"params": model.params["expander"]}, *rows))[0]

    return logits


def pair_of(seed: int, short: int, long: int) -> packing.Clip:
    rng = np.random.default_rng(seed)
    x = rng.integers(3, VOCAB, (short, 1)).astype(np.float32)
    return packing.Clip(x, packing.positions((short, 1, 1)), (short, 1, 1), [VOCAB, *rng.integers(3, VOCAB, long - 1)])


PAIRS = [pair_of(1, 5, 9), pair_of(2, 8, 6), pair_of(3, 3, 12)]


def test_packed_equals_alone(full):
    together, at = full(PAIRS), 0
    for pair in PAIRS:
        n = len(pair.txt)
        np.testing.assert_allclose(together[at : at + n], full([pair])[:n], atol=1e-4)
        at += n


def test_the_long_caption_is_told_from_all_of_the_short_one(full):
    pair = PAIRS[0]
    was = full([pair])[: len(pair.txt)]
    for i in range(len(pair.x)):
        other = pair.x.copy()
        other[i] = other[i] % 100 + 10
        assert np.abs(full([pair._replace(x=other)])[: len(pair.txt)] - was).max(-1).min() > 1e-6


def test_cached_decoding_equals_a_full_pass(model, full):
    """Greedy words, one at a time, are the likeliest of a full pass over the text they make."""
    pair = PAIRS[1]
    x, seg = np.zeros((1, ROW, 1), np.float32), np.zeros((1, ROW), np.int32)
    x[0, : len(pair.x)], seg[0, : len(pair.x)] = pair.x, 1
    batch, zero = {"x": x, "pos": np.zeros((1, ROW, 3), np.int32), "seg": seg}, np.zeros((1, 1), np.int32)
    params = model.params["expander"]
    said, _ = tell(model.expander, params, batch, zero, jnp.float32(0), zero.astype(np.uint32), WORDS)
    words = [int(word) for word in said[0, 0] if word]
    logits = full([pair._replace(txt=[VOCAB, *words])])[: len(words), :VOCAB].copy()
    logits[:, 0] = -np.inf  # padding is never said
    assert logits.argmax(-1).tolist() == words and (words[-1] == EOS or len(words) == WORDS)


def test_any_prompts_are_one_program_and_a_seed_is_a_text(model):
    tell.clear_cache()
    draw = partial(long_of, model, top_p=0.9)
    first = draw(["a red circle"], seeds=[1])
    assert first == draw(["a red circle"], seeds=[1]) != draw(["a red circle"], seeds=[2])
    assert draw(["two blue squares move left and a star grows"], seeds=[1]) != first
    assert tell._cache_size() == 1


def test_a_contradiction_leaves_the_prompt_as_it_is(model, tmp_path, capsys):
    """A model that has learned nothing loses everything."""
    model.save(tmp_path / "expander")
    held = load(tmp_path / "expander")
    assert long_of(held, ["a star"], 0.9, [3]) == long_of(model, ["a star"], 0.9, [3])
    made = expand("a red circle", str(tmp_path / "expander"))
    assert (made.text, made.source) == ("a red circle", "") and "twice it changed what was asked for" in made.warning
    assert main(["expand", "a red circle", "--expander", str(tmp_path / "expander")]) == 0
    out, err = capsys.readouterr()
    assert out == "a red circle\n" and made.warning in err
    long = expand("a red circle " * 20, str(tmp_path / "expander"))
    assert long.text == "a red circle " * 20 and f"the expander reads {ROW}" in long.warning


def test_the_second_draw_is_taken_where_the_first_loses_something():
    draws = ["a blue circle rests", "a red circle rests,  a fixed view"]
    kept = "a red circle rests, a fixed view"
    assert passed("a red circle", draws.__getitem__, "who") == ("a red circle", kept, "who", "")


def test_who_is_no_expander_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"there is no expander .*configs/expander.py"):
        expand("a red ball", str(tmp_path / "none"))
    monkeypatch.setitem(BUNDLED, "expander", tmp_path / "none")
    with pytest.raises(InputError, match=r"no expander is bundled here.*configs/expander.py"):
        expand("a red ball", "tiny")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(InputError, match="is not a model's config"):
        expand("a red ball", str(tmp_path / "other"))
    with pytest.raises(InputError, match="a model, but no expander"):
        expand("a red ball", str(find("tiny")))


def test_every_weight_has_its_place_on_a_mesh(model):
    cut = mesh.shardings(mesh.make({"data": 1, "fsdp": -1, "context": 1, "ring": 1, "tensor": 2}), model.params)
    assert cut["expander"]["teller"]["blocks"]["cross"]["q"]["kernel"].spec[-1] == "tensor"
    assert cut["expander"]["reader"]["blocks"]["q"]["kernel"].spec[-1] == "tensor"
    assert not cut["expander"]["reader"]["embed"].is_fully_replicated


def test_pairs_lose_nothing_and_are_the_same_again():
    tokenizer = Tokenizer(find("tiny"))
    pairs = expander_task.Pairs(tokenizer, 9, 0.3, worlds.HELD_OUT)
    for i in range(60):
        scene = expander_task.scene_of(worlds.HELD_OUT + i, 9, 0.3)
        short, long = expander_task.pair(scene)
        assert lost(short, long) == []
        record = pairs[i]
        assert tokenizer.decode(record["z"].ravel().astype(int)) == short and record["caption_long"] == long
        assert all(f"{thing.color} {thing.shape}" in text.lower() for thing in scene.things for text in (short, long))


def test_a_step_reaches_every_weight_and_lowers_the_loss():
    config = configs.read("configs/expander.py:smoke")
    task = expander_task.make(config)
    batch, cursor = next(task.batches(None, 0, 1))
    assert set(cursor) >= {"read", "open", "closed"} and (batch["txt"][:, 0] == VOCAB).all()
    params = jax.jit(task.init)(jax.random.key(0))
    loss = jax.jit(jax.value_and_grad(lambda params: task.loss(params, batch, None)[0]))
    value, grads = loss(params)
    assert 5.0 < float(value) < 9.0  # log(1025) = 6.9: it knows nothing
    norms = {name: float(jnp.abs(grad).max()) for name, grad in flat(grads).items()}
    assert all(norms.values()), [name for name, norm in norms.items() if not norm]  # every weight is learned
    after, _ = loss(jax.tree.map(lambda p, g: p - 0.1 * g / (1 + jnp.abs(g).max()), params, grads))
    assert float(after) < float(value)


def test_the_bundled_one_describes_and_loses_nothing():
    made = expand("a blue star and a yellow triangle", "tiny", seed=1)
    assert made.source == "expander:tiny" and not made.warning and len(made.text) > 2 * len(made.prompt)
    assert not lost(made.prompt, made.text)
