"""A published model is trained further at native sizes, with the masks of the curriculum, and goes back to its peers:
the way of configs/dit.py's wan-5b,tune, at a few channels, with random weights in the published layout."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from sora_jax.data import dataset
from sora_jax.media import Video
from sora_jax.model import dit_shapes, flat, load, vae_shapes
from sora_jax.train import checkpoint, configs, loop
from sora_jax.train.export import export
from sora_jax.weights import convert, published

FIXTURES = Path(__file__).parent / "fixtures"
TEXT = 32  # tokens that a text is filled up to here; the published ones are 512
DIT = dict(width=24, depth=2, heads=2, mlp=32, channels=48, given=0, patch=[1, 2, 2])
DIT |= dict(remat=True, keep="attention", dtype="bfloat16")
VAE = dict(width=4, decoder_width=6, multipliers=[1, 2, 4, 4], blocks=1, time=[1, 2, 2], space=[2, 2, 2], patch=2)
VAE |= dict(channels=48, linear_skip=False, dtype="float32", shortcuts=True)


def drawn(shapes: dict) -> dict[str, np.ndarray]:
    """Random weights of no extreme: gains near 1, kernels that keep sizes."""
    rng, leaves = np.random.default_rng(0), {}
    for path, leaf in flat(shapes).items():
        x = rng.standard_normal(leaf.shape, np.float32)
        if path.endswith("kernel"):
            leaves[path] = x / np.float32(np.sqrt(np.prod(leaf.shape[path.startswith("blocks/") : -1])))
        else:
            leaves[path] = 0.1 * x + path.endswith(("scale", "latent_std"))
    return leaves


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model like the 5B (a VAE of 4x16x16 and 48 channels) as diffusers publishes it, imported."""
    folder = tmp_path_factory.mktemp("tune")
    ours, theirs, model = (folder / name for name in ("drawn", "published", "model"))
    convert.import_([FIXTURES / "wan" / "text_encoder", FIXTURES / "wan" / "tokenizer"], ours)
    config = json.loads((ours / "model.json").read_text()) | {"dit": DIT, "vae": VAE}
    safetensors.save_file(drawn(dit_shapes(DIT, config["text"]["width"])), ours / "dit.safetensors")
    safetensors.save_file(drawn(vae_shapes(VAE)), ours / "vae.safetensors")
    (ours / "model.json").write_text(json.dumps(config | convert.painting(config)))
    convert.export(ours, theirs)
    assert json.loads((theirs / "model_index.json").read_text())["expand_timesteps"]
    convert.import_([theirs], model)
    config = json.loads((model / "model.json").read_text())
    config["text"]["rows"], config["sample"]["text_row"], config["sample"]["row"] = TEXT, TEXT, 64
    (model / "model.json").write_text(json.dumps(config))
    return model


def test_the_config_is_of_the_published_models_text_and_shift():
    for name, of in published.MODELS.items():
        c = configs.read(f"configs/dit.py:{name},tune")
        assert published.TEXT.items() <= c.text.to_dict().items() and c.flow.shift == of.shift
        assert c.frozen == ("text",) and c.data.text_row == c.data.segments * published.TEXT["rows"]


@pytest.mark.slow
def test_imported_trained_further_resumed_and_exported(model, tmp_path):
    latents = tmp_path / "latents"
    dataset.latents("world", model, latents, clips=6, max_frames=5, max_pixels=4096)
    sizes = {row["z"].shape[:3] for row in dataset.open_latents(latents)}
    assert len(sizes) > 1  # native: nothing was made of one size

    def config(steps: int):
        text = json.loads((model / "model.json").read_text())["text"]
        settings = {f"dit.{key}": value for key, value in DIT.items() if key in ("width", "depth", "heads", "mlp")}
        settings |= {f"text.{key}": value for key, value in text.items() if not isinstance(value, str | bool)}
        settings |= {
            "init": model,
            "vae_model": model,
            "tokenizer": model,
            "steps": steps,
            "save_every": 2,
            "dit.remat": False,
        }
        settings |= {"data.path": latents, "data.held_out": latents, "data.row": 64, "data.rows": 8}
        settings |= {"data.text_tokens": TEXT, "data.text_row": 16 * TEXT, "data.open_rows": 4, "data.lookahead": 0}
        settings |= {"masks.none": 0.1, "masks.ends": 0.3, "masks.box": 0.3, "opt.warmup": 0, "opt.lr": 1e-3}
        settings |= {"prompts": (), "sample.row": 64, "sample.text_row": TEXT}
        return configs.read("configs/dit.py:wan-5b,tune", [f"{key}={value}" for key, value in settings.items()])

    whole = loop.train(config(4), tmp_path / "whole")
    assert whole["skipped"] == 0 and np.isfinite(whole["loss"])
    loop.train(config(2), tmp_path / "cut")
    assert loop.train(config(4), tmp_path / "cut")["digest"] == whole["digest"]
    state, _ = checkpoint.restore(tmp_path / "whole" / "checkpoints")
    assert state["params"].keys() == {"dit"} and all(x.dtype == np.float32 for x in jax.tree.leaves(state["params"]))

    export(tmp_path / "whole", tmp_path / "tuned")
    before, after = load(model), load(tmp_path / "tuned")
    jax.tree.map(np.testing.assert_array_equal, after.params["text"], before.params["text"])
    assert all((x != flat(before.params["dit"])[path]).any() for path, x in flat(after.params["dit"]).items())
    picture = Video(np.full((1, 32, 48, 3), 200, np.uint8), 1.0)
    video = after.animate(picture, "a star", frames=5, steps=1)
    np.testing.assert_array_equal(video.frames[0], picture.frames[0])

    convert.export(tmp_path / "tuned", tmp_path / "theirs")
    convert.import_([tmp_path / "theirs"], tmp_path / "again")
    for part in ("dit", "text", "vae"):
        ours, again = (safetensors.load_file(tmp_path / name / f"{part}.safetensors") for name in ("tuned", "again"))
        assert ours.keys() == again.keys() and all((ours[path] == again[path]).all() for path in ours)
    facts = json.loads((tmp_path / "again" / "model.json").read_text())
    assert facts["flow"] == {"predict": "velocity", "shift": 5.0, "timesteps": 1000}
