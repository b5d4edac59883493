"""A transformer that is told what is known in channels beside the noise (Wan 2.2's I2V) is trained as it is painted
with: told the same of the same clip; and of two transformers each at its own noise levels, the other as it was."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax import drafts
from sora_jax.data import dataset, packing
from sora_jax.diffusion import canvas, flow
from sora_jax.errors import InputError
from sora_jax.media import Video
from sora_jax.model import Model, flat, load, shapes_of
from sora_jax.models.text import train_tokenizer
from sora_jax.train import configs, dit_task, loop
from sora_jax.train.export import export

SWITCH = 0.9
GIVEN = 4 + 4  # of mask and of the VAE's channels
CONFIG = {
    "vae": {"width": 4, "multipliers": [1, 1, 1], "blocks": 0, "time": [2, 2], "space": [2, 2], "patch": 2,
            "channels": 4},
    "text": {"vocab": 320, "width": 16, "depth": 1, "heads": 2, "head_width": 8, "mlp": 16, "bias_every_layer": True,
             "rows": 12, "dtype": "float32"},
    "dit": {"width": 24, "depth": 1, "heads": 2, "mlp": 32, "channels": 4, "given": GIVEN, "patch": [1, 2, 2],
            "remat": False, "dtype": "float32"},
    "flow": {"predict": "velocity", "shift": 5.0, "timesteps": 1000},
    "sample": {"row": 64, "text_row": 12, "steps": 2, "guidance": [1.0, 1.0], "solver": "unipc", "fps": 8.0,
               "frames": 9, "switch": SWITCH},
}  # fmt: skip
CONFIG["dit_low"] = CONFIG["dit"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("given")
    tokenizer = train_tokenizer(["a red circle moves right"], root / "tokenizer.model", 320)
    model, rng = Model(CONFIG, {}, tokenizer), np.random.default_rng(0)
    model.params = jax.tree.map(lambda x: np.asarray(rng.normal(0, 0.2, x.shape), np.float32), shapes_of(model))
    model.params["vae"] |= {"latent_std": np.ones(4, np.float32)}
    model.save(root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def model(folder) -> Model:
    return load(folder)


@pytest.fixture(scope="module")
def video() -> Video:
    return Video(np.random.default_rng(1).integers(0, 256, (9, 32, 48, 3), np.uint8), 8.0)


def config(folder: Path, **changes):
    settings = {f"{part}.{key}": value for part in ("dit", "text") for key, value in CONFIG[part].items()}
    settings |= {"init": folder, "vae_model": folder, "tokenizer": folder, "prompts": (), "steps": 2, "save_every": 2}
    settings |= {"data.row": 64, "data.rows": 8, "data.text_tokens": 12, "data.text_row": 48, "data.segments": 4}
    settings |= {"data.open_rows": 4, "data.lookahead": 0, "opt.warmup": 0, "opt.lr": 1e-3}
    settings |= {"data.path": "world", "data.held_out": "world-held-out", "data.captions.original": 0.0}
    settings |= {"sample.row": 64, "sample.text_row": 12} | changes
    return configs.read("configs/dit.py:wan-a14b-i2v,tune", [f"{key}={value}" for key, value in settings.items()])


def seed_of(kind: str, size: tuple[int, int, int]) -> int:
    """A seed whose mask is of a kind."""
    wanted = {"first": lambda known: known[0].all() and not known[1:].any(), "none": lambda known: not known.any()}
    return next(seed for seed in range(99) if wanted[kind](canvas.drawn_mask(seed, size, CONFIG["dit"]["patch"])))


@pytest.mark.parametrize("kind", ["first", "none"])
def test_a_clip_is_told_to_training_as_it_is_to_painting(model, video, kind):
    z = model.encode(video)
    made = dataset.encoded(model, video, seed_of(kind, z.shape[:3]))
    np.testing.assert_array_equal(made[..., :4], z)
    known = np.arange(9)[:, None, None] < (1 if kind == "first" else 0)
    # what is not known may be anything: painting has zeros there
    asked = drafts.draft(np.where(known[..., None], video.frames, np.uint8(0)), known, 8.0)
    np.testing.assert_array_equal(made[..., 4:], drafts.canvas_of(model, asked).given)
    assert (made[0, ..., 4:8] == (kind == "first")).all() and not made[1:, ..., 4:8].any()


def batch_of(model: Model, video: Video) -> dict:
    """One row of a clip with its first frame given, and of one of which nothing is."""
    z = model.encode(video)
    clips = []
    for kind in ("first", "none"):
        made = dataset.encoded(model, video, seed_of(kind, z.shape[:3]))
        grid = packing.grid_of(made.shape, (1, 2, 2))
        x = packing.patchify(made, (1, 2, 2))
        clips.append(packing.Clip(x, packing.positions(grid), grid, model.tokenizer.encode("a red circle")))
    return jax.tree.map(jnp.asarray, packing.collate([clips], 64, 48, 4))


def test_the_gradient_reaches_what_is_given(folder, model, video):
    task, batch = dit_task.make(config(folder)), batch_of(model, video)
    params = {"text": model.params["text"], "dit": model.params["dit"]}
    grad = jax.jit(jax.value_and_grad(lambda dit, key: task.loss(params | {"dit": dit}, batch, key)[0]))
    loss, gradient = grad(jax.tree.map(jnp.asarray, params["dit"]), jax.random.key(0))
    rows = gradient["patch_in"]["kernel"].reshape(4, 4 + GIVEN, 24)  # a patch's latents, their channels
    assert np.isfinite(loss) and (jnp.abs(rows).max((0, 2)) > 0).all()


@pytest.mark.parametrize("expert", ["high", "low"])
def test_each_of_two_transformers_has_its_own_noise_levels(folder, expert):
    low, high = dit_task.span(config(folder, expert=expert))
    assert (low, high) == ((SWITCH, 1.0) if expert == "high" else (0.0, SWITCH))
    t = flow.draw_within("logit_normal", jax.random.key(0), (4000,), 5.0, low, high)
    assert low <= t.min() < t.max() < high
    all_of_it = flow.draw_within("logit_normal", jax.random.key(1), (40_000,), 5.0, 0.0, 1.0)
    own = all_of_it[(all_of_it >= low) & (all_of_it < high)]  # the law's own share of the span, of the same mean
    assert abs(t.mean() - own.mean()) < 4 * own.std() / np.sqrt(4000)
    with pytest.raises(InputError, match=r"config\.expert is 'both'"):
        dit_task.span(config(folder, expert="both"))


@pytest.mark.slow
@pytest.mark.parametrize("expert", ["high", "low"])
def test_one_is_trained_and_both_are_exported(folder, tmp_path, expert):
    end = loop.train(config(folder, expert=expert), tmp_path / "run")
    assert end["skipped"] == 0 and np.isfinite(end["loss"])
    export(tmp_path / "run", tmp_path / "tuned")
    before, after = load(folder), load(tmp_path / "tuned")
    mine, other = ("dit", "dit_low") if expert == "high" else ("dit_low", "dit")
    jax.tree.map(np.testing.assert_array_equal, after.params[other], before.params[other])
    assert all((x != flat(before.params[mine])[path]).any() for path, x in flat(after.params[mine]).items())
    assert json.loads((tmp_path / "tuned" / "model.json").read_text())["sample"] == CONFIG["sample"]
    picture = Video(np.full((1, 32, 48, 3), 200, np.uint8), 1.0)
    np.testing.assert_array_equal(after.animate(picture, "a star", frames=5).frames[0], picture.frames[0])
