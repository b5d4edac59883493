"""Laws of the captioner: packed == alone, causal by gradient, cached decoding == a full pass, captions read back."""

import json
import tracemalloc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.captioning import Asking, describe, likelihood, similarity
from sora_jax.data import footage, packing, worlds
from sora_jax.data.recaption import by_captioner
from sora_jax.errors import InputError
from sora_jax.evaluate import captions as judge
from sora_jax.media import Video, decode, encode
from sora_jax.model import Model, captioner_shapes, find, flat, load, unflat
from sora_jax.models.captioner import KINDS, tell
from sora_jax.models.text import EOS, Tokenizer
from sora_jax.pod import mesh
from sora_jax.train.init import begun

PATCH, GROUPS, WORDS = (2, 4, 4), 4, 10
SIZE = 3 * int(np.prod(PATCH))
ROW, TEXT = 40, 32


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(find("tiny"))


@pytest.fixture(scope="module")
def model(tokenizer):
    fields = dict(width=24, depth=1, text_depth=1, tell_depth=2, heads=2, mlp=32, embed=8, vocab=1024, patch=PATCH)
    rng, leaves = np.random.default_rng(0), flat(captioner_shapes(fields))  # no zeros: every path must carry something
    params = {
        name: (name.endswith("scale") + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)
        for name, leaf in leaves.items()
    }
    params["pool/temperature"] = np.float32(1.0)
    how = dict(frames=5, max_pixels=16 * 16, tokens=WORDS, row=ROW + 24, rows=2, segments=GROUPS)
    return Model(
        {"captioner": fields, "describe": how}, {"captioner": jax.tree.map(jnp.asarray, unflat(params))}, tokenizer
    )


@pytest.fixture(scope="module")
def full(model):
    """(logits, embeddings of clips, of texts, temperature) of packed rows, jitted."""
    apply = jax.jit(model.captioner.apply, static_argnums=6)
    return lambda args: apply({"params": model.params["captioner"]}, *args, GROUPS)


def clip(seed: int, grid: tuple[int, int, int], words: int) -> packing.Clip:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((int(np.prod(grid)), SIZE)).astype(np.float32)
    txt = [1024 + seed % 2, *rng.integers(3, 1024, words - 2).tolist(), EOS]
    return packing.Clip(x, packing.positions(grid), grid, txt)


def row(clips: list[packing.Clip]) -> tuple:
    batch = packing.collate([clips], ROW, TEXT, GROUPS)
    return tuple(batch[name] for name in ("x", "pos", "seg", "txt", "txt_seg"))


CLIPS = [clip(1, (2, 3, 2), 7), clip(2, (1, 2, 4), 4), clip(3, (3, 2, 3), 9)]


def test_packed_equals_alone(full):
    logits, v, w, _ = full(row(CLIPS))
    at = 0
    for i, c in enumerate(CLIPS):
        alone = full(row([c]))
        n = len(c.txt)
        np.testing.assert_allclose(logits[0, at : at + n], alone[0][0, :n], atol=1e-4)
        np.testing.assert_allclose(v[0, i], alone[1][0, 0], atol=1e-5)
        np.testing.assert_allclose(w[0, i], alone[2][0, 0], atol=1e-5)
        at += n


def test_a_neighbour_changes_nothing_bitwise(full):
    other = [CLIPS[0], CLIPS[1]._replace(x=100 * CLIPS[1].x, txt=[1024, 5, 6, EOS]), CLIPS[2]]
    a, b = full(row(CLIPS)), full(row(other))
    n, m = len(CLIPS[0].txt), len(CLIPS[1].txt)
    assert (np.asarray(a[0])[0, :n] == np.asarray(b[0])[0, :n]).all() and (a[1][0, 0] == b[1][0, 0]).all()
    assert not np.allclose(a[0][0, n : n + m], b[0][0, n : n + m])


def test_words_are_told_from_those_before_them_and_the_clip(model):
    """By gradient: of the logits after token 4 with respect to every token's row of the table, and to the patches."""
    x, pos, seg, txt, txt_seg = row([CLIPS[0]])
    txt = np.where(txt_seg > 0, np.arange(10, 10 + TEXT), txt)  # each its own row of the table

    def after_fourth(embed, x):
        params = model.params["captioner"]
        params = params | {"text": params["text"] | {"embed": embed}}
        ctx = model.captioner.apply({"params": params}, x, pos, seg, method="see")
        states, _ = model.captioner.apply({"params": params}, txt, txt_seg, ctx, seg, method=states_of)
        return jnp.square(states[0, 4]).sum()

    by_word, by_patch = jax.jit(jax.grad(after_fourth, (0, 1)))(model.params["captioner"]["text"]["embed"], x)
    moved = np.abs(np.asarray(by_word)[txt[0, :7]]).sum(-1) > 0
    assert moved.tolist() == [True] * 5 + [False] * 2
    assert (np.abs(np.asarray(by_patch)[0, : len(CLIPS[0].x)]).sum(-1) > 0).all()
    assert (np.asarray(by_patch)[0, len(CLIPS[0].x) :] == 0).all()


def states_of(captioner, txt, txt_seg, ctx, seg):
    from sora_jax.models.captioner import places

    states, _ = captioner.text(txt, places(txt_seg), txt_seg, None, None)
    return captioner.teller(states, places(txt_seg), txt_seg, None, None, ctx, seg)


def test_cached_decoding_equals_a_full_pass(model, full):
    """Greedy words, one at a time, are the likeliest of a full pass over the text they make; and any words' logits
    agree.
    """
    x, pos, seg, *_ = row(CLIPS)
    ask, seeds = np.zeros((1, GROUPS), np.int32), np.zeros((1, GROUPS), np.uint32)
    batch = {"x": x, "pos": pos, "seg": seg}
    said, sure = tell(model.captioner, model.params["captioner"], batch, ask, jnp.float32(0), seeds, WORDS)
    for i, c in enumerate(CLIPS):
        words = [int(w) for w in said[0, i] if w]
        txt = [model.captioner.vocab, *words]
        logits = np.array(full(row([c._replace(txt=txt)]))[0][0, : len(words), : model.captioner.vocab])
        logits[:, 0] = -np.inf  # padding is never said
        assert logits.argmax(-1).tolist() == words
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p = np.log((p / p.sum(-1, keepdims=True)).max(-1))
        assert float(sure[0, i]) == pytest.approx(float(np.exp(p.mean())), abs=1e-4)
    assert (np.asarray(said)[0, len(CLIPS) :] == 0).all()

    together = np.asarray(full(row(CLIPS))[0])[0, : len(CLIPS[0].txt)]
    np.testing.assert_allclose(by_word(model, CLIPS[0].txt, x, pos, seg), together, atol=1e-4)


def by_word(model, words, x, pos, seg):
    """The logits after each word of the first clip's text, with the cache."""
    apply = partial(model.captioner.apply, {"params": model.params["captioner"]})
    see = jax.jit(lambda x: (apply(x, pos, seg, method="see"), apply(1, GROUPS, WORDS, method="empty")))
    say = jax.jit(lambda word, at, cache, ctx: apply(jnp.full((1, GROUPS), word), at, cache, ctx, seg, method="say"))
    (ctx, cache), every = see(x), []
    for at, word in enumerate(words):
        logits, cache = say(word, at, cache, None if at else ctx)
        every.append(logits[0, 0])
    return np.stack(every)


def test_any_sizes_are_one_program_and_clips_keep_their_words(model):
    clips = [Video(worlds.render(worlds.sample(i, size=(16, 16), frames=f)), 8.0) for i, f in ((1, 5), (2, 1), (3, 9))]
    clips.append(Video(worlds.render(worlds.sample(4, size=(24, 32), frames=5)), 8.0))  # shrunk
    tell.clear_cache()
    together = describe(model, clips)
    assert [describe(model, [c])[0] for c in clips] == together and tell._cache_size() == 1
    drawn = describe(model, clips, top_p=0.9, seed=3)
    assert drawn == describe(model, clips, top_p=0.9, seed=3) != describe(model, clips, top_p=0.9, seed=4)
    assert drawn != together and all(0 <= told["confidence"] <= 1 for told in drawn)
    assert tell._cache_size() == 1
    near = similarity(model, clips, ["a red circle", "a blue star moves left", "x"])
    assert near.shape == (4, 3) and (np.abs(near) <= 1.0001).all()
    np.testing.assert_allclose(
        near[2:3], similarity(model, clips[2:3], ["a red circle", "a blue star moves left", "x"]), atol=1e-5
    )


def test_the_likeliest_clip_is_the_one_that_was_told():
    """Among clips of other sizes, lengths and scenes a prompt finds its own; a clip is judged as if it were alone."""
    model = load("captioner")
    scenes = [worlds.sample(worlds.HELD_OUT + i, size=(48, 48), frames=1 + 4 * (i % 2), count=1) for i in range(8)]
    scenes.append(worlds.sample(worlds.HELD_OUT + 9, size=(64, 48), frames=1, count=2))
    clips = [Video(worlds.render(scene), 8.0) for scene in scenes]
    for i, scene in enumerate(scenes):
        for text in worlds.captions(scene):
            sure = likelihood(model, clips, text)
            assert sure.shape == (9,) and (sure < 0).all() and sure.argmax() == i
    np.testing.assert_allclose(likelihood(model, clips[8:], text), sure[8:], atol=1e-5)


def test_a_saved_captioner_is_read_back(model, tmp_path):
    model.save(tmp_path / "captioner")
    clips = [Video(worlds.render(worlds.sample(1, size=(16, 16), frames=5)), 8.0)]
    assert describe(load(tmp_path / "captioner"), clips) == describe(model, clips)
    row = {"media": encode(clips[0]), "name": "a", "frames": 5, "fps": 8.0}
    rows = iter([(7, row), (8, row | {"media": b"no clip", "name": "b"})])
    (bad, error), (good, told) = by_captioner(str(tmp_path / "captioner"), 0, rows)
    assert (bad, good) == (8, 7) and isinstance(error, InputError)
    assert told.source == f"captioner:{tmp_path / 'captioner'}" and 0 <= told.confidence <= 1
    with pytest.raises(InputError, match="only a VAE"):
        load(tmp_path / "captioner").generate("a red circle")
    with pytest.raises(InputError, match="no captioner"):
        describe(Model({}, {}), clips)
    with pytest.raises(InputError, match="ask for long or short"):
        describe(model, clips, kind="haiku")


def test_a_run_begins_with_a_captioners_weights(model, tmp_path):
    model.save(tmp_path / "captioner")
    began = begun(str(tmp_path / "captioner"), jax.tree.map(jnp.zeros_like, model.params))
    for part in ("params", "ema"):
        jax.tree.map(np.testing.assert_array_equal, began[part], model.params)


def test_every_weight_has_its_place_on_a_mesh(model):
    one = mesh.make({"data": 1, "fsdp": -1, "context": 1, "ring": 1, "tensor": 2})
    cut = mesh.shardings(one, model.params)
    assert cut["captioner"]["video"]["blocks"]["self"]["q"]["kernel"].spec[-1] == "tensor"


def test_what_is_asked_for_stands_before_the_text(tokenizer):
    ids = Asking(tokenizer, 1024).encode(f"short{footage.MARK}a red circle: still")
    assert ids == [1024 + KINDS.index("short"), *tokenizer.encode("a red circle: still")]


def test_frames_are_thinned_evenly_from_the_first_to_the_last():
    frames = np.arange(33, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    assert footage.thinned(frames, 9)[:, 0, 0, 0].tolist() == list(range(0, 33, 4))
    assert footage.thinned(frames[:5], 9) is not None and len(footage.thinned(frames[:5], 9)) == 5
    # a scene of 33 frames thinned to 9 is the scene of 9
    long, short = (worlds.sample(3, size=(64, 64), frames=f, motion="left", count=1, way=None) for f in (33, 9))
    assert np.ptp(worlds.positions(long)[0, ::4, 0]) == pytest.approx(np.ptp(worlds.positions(long)[0, :, 0]))
    assert len(worlds.positions(short)[0]) == 9


def test_a_long_clip_is_looked_at_without_all_of_it_in_memory():
    rng = np.random.default_rng(0)
    video = Video(np.cumsum(rng.integers(0, 2, (150, 1, 160, 1)), 0).repeat(120, 1).repeat(3, 3).astype(np.uint8), 24.0)
    row = {"media": encode(video), "name": "a", "frames": 150, "fps": 24.0}
    whole = decode(row["media"])
    tracemalloc.start()
    glanced = footage.glance(row, 9, 64 * 48)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < whole.frames.nbytes / 4
    np.testing.assert_array_equal(footage.seen(glanced, 9, 64 * 48), footage.seen(whole, 9, 64 * 48))


# Captions are read back


@pytest.mark.parametrize("which", [0, 1])
def test_the_worlds_own_captions_are_entirely_true(which):
    scenes = [worlds.sample(worlds.HELD_OUT + i) for i in range(300)]
    scores = judge.scored([worlds.captions(scene)[which] for scene in scenes], scenes)
    told = ("color", "object", "direction", "motion", "count", "camera", "size", "texture") + ("ground",) * which
    assert {name: scores[name] for name in told} == dict.fromkeys(told, 1.0)
    assert (scores["bleu"] == 1.0) == bool(which)


def test_captions_of_other_scenes_are_not():
    scenes = [worlds.sample(worlds.HELD_OUT + i, frames=9, count=1, camera="still") for i in range(60)]
    others = [worlds.captions(scene)[1] for scene in scenes[1:] + scenes[:1]]
    scores = judge.scored(others, scenes)
    assert scores["object"] < 0.2 and scores["direction"] < 0.3 and scores["bleu"] < 0.6


def test_cider_by_hand():
    """Of two references all have "a", which counts nothing; "b" and "c" are one's each."""
    assert judge.cider(["a b", "a b"], ["a b", "a c"], order=2) == pytest.approx(10 * (1 + 0) / 2)
    # "b" twice: min(2, 1) * 1 / (2 * 1), and a word too many
    near = np.exp(-1 / 72)
    assert judge.cider(["a b b", "a c"], ["a b", "a c"], order=1) == pytest.approx(10 * (0.5 * near + 1) / 2)
    assert judge.cider(["d"], ["d"]) == 0  # among one caption no word is rare


@pytest.mark.parametrize("wrong, score", [("blue", "color"), ("star", "object"), ("right", "direction")])
def test_one_wrong_word_is_noticed(wrong, score):
    scene = worlds.sample(
        5, size=(64, 64), frames=9, count=1, color="red", shape="circle", motion="left", camera="still"
    )
    right = {"blue": "red", "star": "circle", "right": "left"}[wrong]
    text = "a red circle in the middle moves left, a plain white background"
    assert judge.checked(text, scene)[score] == [True]
    assert judge.checked(text.replace(right, wrong), scene)[score] == [False]


def test_a_captioner_that_knows_nothing_is_judged_so(model, capsys):
    result = judge.evaluate(model, clips=4)
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == result and len(lines) == len(result) - 1  # a line a score, and the JSON one
    assert result["clips"] == 4 and result["object"] == 0 and result["bleu"] < 0.1


def test_the_bundled_one_tells_what_is_there():
    """A handful of held-out scenes; `sora-jax evaluate captions` asks 500."""
    scores = judge.judged(load("captioner"), 12, worlds.HELD_OUT)
    assert scores["color"] >= 0.9 and scores["object"] >= 0.85 and scores["count"] >= 0.8
