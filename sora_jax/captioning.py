"""What one does with a captioner: tell clips, many at a time, and say how well texts fit them.

A captioner's folder is a model's (`model.load`) with captioner.safetensors, its tokenizer and model.json, where

    captioner   the fields of `models.captioner.Captioner`
    describe    frames (a longer clip is thinned to so many), max_pixels (a larger frame is shrunk), tokens (of a
                caption, at most), and what is told at a time: rows of row patches, each of at most segments clips

    model = load("captioner")
    describe(model, clips)                    # [{"text": "a red circle moves right, ...", "confidence": 0.8}, ...]
    similarity(model, clips, texts)           # cosines [clips texts]
    likelihood(model, clips, "a red circle")  # how likely it would say so of each: which of them to keep
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sora_jax.data import footage, packing
from sora_jax.errors import InputError
from sora_jax.media import Video
from sora_jax.model import Model
from sora_jax.models.captioner import KINDS, tell


class Asking:
    """A tokenizer of "long: a caption": the mark of what is asked for, token vocab + i for the i-th kind, then its ids.

    Raises InputError for another kind.
    """

    def __init__(self, tokenizer, vocab: int):
        self.tokenizer, self.vocab = tokenizer, vocab

    def encode(self, text: str) -> list[int]:
        kind, _, said = text.partition(footage.MARK)
        return [self.vocab + kind_of(kind), *self.tokenizer.encode(said)]


def kind_of(name: str) -> int:
    """The number of a kind of caption. Raises InputError for another name."""
    if name not in KINDS:
        raise InputError(f"a captioner knows no {name!r} caption: ask for {' or '.join(KINDS)}")
    return KINDS.index(name)


def describe(
    model: Model, clips: Sequence[Video], kind: str = "long", top_p: float = 0.0, seed: int = 0
) -> list[dict[str, str | float]]:
    """{"text", "confidence"} of each clip, the latter the mean probability of its tokens.

    top_p: 0 says the likeliest word, above it one is drawn from the likeliest that together have so much; the i-th clip
    draws the i-th numbers of the seed. Any sizes run one program. Raises InputError for another kind, a model that is
    no captioner, or top_p outside [0, 1].
    """
    if not 0 <= top_p <= 1:
        raise InputError(f"top_p is {top_p}: give a share from 0, the likeliest word, to 1, any word")
    ask, told = kind_of(kind), [{}] * len(clips)
    for index, batch in packed(model, clips):
        seeds = np.asarray([[hash_of(seed, i) for i in row] for row in index], np.uint32)
        asked = np.full(index.shape, ask, np.int32)
        words = model.config["describe"]["tokens"]
        parts = model.params["captioner"], batch, asked, jnp.float32(top_p), seeds
        said, sure = jax.device_get(tell(model.captioner, *parts, words))
        for at in zip(*np.nonzero(index >= 0)):
            told[index[at]] = {"text": model.tokenizer.decode(said[at]), "confidence": round(float(sure[at]), 4)}
    return told


def similarity(model: Model, clips: Sequence[Video], texts: Sequence[str]) -> Float[np.ndarray, "n m"]:
    """The cosine of every clip's embedding with every text's: how well they fit; 1 is best, 0 knows nothing of it.

    Captions of the kind that training drew most are compared best. Raises InputError for a model that is no captioner.
    """
    tokenizer, rows = Asking(model.tokenizer, checked(model).captioner.vocab), []
    v = np.zeros((len(clips), model.captioner.embed), np.float32)
    for index, batch in packed(model, clips):
        there = index >= 0
        v[index[there]] = np.asarray(_clips(model.captioner, model.params["captioner"], batch, index.shape[1]))[there]
    most = model.config["describe"]["tokens"] + 1
    for text in texts:
        ids = tokenizer.encode(f"long{footage.MARK}{text}")[:most]
        rows.append([ids + [0] * (most - len(ids)), [1] * len(ids) + [0] * (most - len(ids))])
    txt, seg = np.asarray(rows, np.int32).transpose(1, 0, 2)
    return v @ np.asarray(_texts(model.captioner, model.params["captioner"], txt, seg))[:, 0].T


def likelihood(model: Model, clips: Sequence[Video], text: str) -> Float[np.ndarray, n]:
    """The mean log probability of the text's tokens, as the kind of caption that each clip has it more likely.

    One prompt's clips are compared by it: of one object too many, or of another, a captioner would say something else;
    their embeddings (`similarity`) are further from such details. Raises InputError for a model that is no captioner.
    """
    tokenizer = Asking(model.tokenizer, checked(model).captioner.vocab)
    most = model.config["describe"]["tokens"] + 1
    found = np.full((len(KINDS), len(clips)), -np.inf, np.float32)
    for index, batch in packed(model, clips):
        rows, segments = index.shape
        for kind, name in enumerate(KINDS):
            ids = tokenizer.encode(f"{name}{footage.MARK}{text}")[:most]
            one = np.asarray(ids + [0] * (most - len(ids)), np.int32)
            there = np.arange(1, segments + 1)[:, None] * (np.arange(most) < len(ids))
            txt, seg = (np.tile(x, (rows, 1)) for x in (np.tile(one, segments), there.reshape(-1).astype(np.int32)))
            sure = np.asarray(_said(model.captioner, model.params["captioner"], batch, txt, seg, segments))
            found[kind, index[index >= 0]] = sure.reshape(rows, segments, most).sum(-1)[index >= 0] / (len(ids) - 1)
    return found.max(0)


@partial(jax.jit, static_argnums=(0, 5))
def _said(captioner, params: dict, batch: dict, txt, txt_seg, segments: int):
    """The log probability of each token's successor in its text; 0 after the last."""
    rows = (batch["x"], batch["pos"], batch["seg"], txt, txt_seg, segments)
    log_p = jax.nn.log_softmax(captioner.apply({"params": params}, *rows)[0], -1)
    following, its = (jnp.pad(x[:, 1:], ((0, 0), (0, 1))) for x in (txt, txt_seg))
    chosen = jnp.take_along_axis(log_p, following[..., None], -1)[..., 0]
    return jnp.where((txt_seg > 0) & (its == txt_seg), chosen, 0.0)


@partial(jax.jit, static_argnums=(0, 3))
def _clips(captioner, params: dict, batch: dict, segments: int):
    apply = partial(captioner.apply, {"params": params})
    return apply(apply(batch["x"], batch["pos"], batch["seg"], method="see"), batch["seg"], segments, method="clips")


@partial(jax.jit, static_argnums=0)
def _texts(captioner, params: dict, txt, seg):
    return captioner.apply({"params": params}, txt, seg, 1, method="texts")


def packed(model: Model, clips: Sequence[Video]) -> Iterator[tuple[np.ndarray, dict]]:
    """(which clip each segment holds [b g], -1: none; x, pos and seg) of batches of one shape, clip after clip."""
    how, patch = checked(model).config["describe"], model.captioner.patch
    packer = packing.Packer(how["row"], how["segments"], how["segments"], how["rows"])
    waiting: dict[int, packing.Clip] = {}

    def batch(rows):
        rows += [[]] * (how["rows"] - len(rows))
        index = np.full((how["rows"], how["segments"]), -1)
        for i, row in enumerate(rows):
            index[i, : len(row)] = row
        full = [[waiting.pop(i) for i in row] for row in rows]
        made = packing.collate(full, how["row"], how["segments"], how["segments"])
        return index, {name: made[name] for name in ("x", "pos", "seg")}

    closed: list = []
    for i, clip in enumerate(clips):
        x = footage.seen(clip, how["frames"], how["max_pixels"])
        grid = packing.grid_of(x.shape, patch)
        waiting[i] = packing.Clip(packing.patchify(x, patch), packing.positions(grid), grid, [0])
        packer.add(i, (len(waiting[i].x), 1))
        if i == len(clips) - 1:
            packer.flush()
        while row := packer.take(1):
            closed += row
            if len(closed) == how["rows"]:
                yield batch(closed)
                closed = []
    if closed:
        yield batch(closed)


def checked(model: Model) -> Model:
    """The model. Raises InputError when it is no captioner."""
    if "captioner" not in model.params:
        raise InputError("this model is no captioner: give the folder of one, or `captioner`, the bundled one")
    return model


def hash_of(seed: int, index: int) -> int:
    """A seed for each clip of a seed's."""
    return int(np.random.SeedSequence((seed % 2**64, max(int(index), 0))).generate_state(1)[0])
