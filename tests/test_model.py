"""Laws of a Model: a folder comes back as it was saved, sizes are exact, one compilation, clear errors."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from sora_jax.data import shards
from sora_jax.diffusion import sampler
from sora_jax.errors import InputError
from sora_jax.evaluate import results
from sora_jax.media import Video
from sora_jax.model import Model, flat, load, shapes_of
from sora_jax.models.text import train_tokenizer

CONFIG = {
    "vae": {
        "width": 4,
        "multipliers": [1, 1, 1],
        "blocks": 0,
        "time": [2, 2],
        "space": [2, 2],
        "patch": 2,
        "channels": 4,
    },
    "text": {"vocab": 320, "width": 16, "depth": 1, "heads": 2, "head_width": 8, "mlp": 16, "bias_every_layer": True},
    "dit": {"width": 24, "depth": 1, "heads": 2, "mlp": 32, "channels": 4, "remat": False, "dtype": "float32"},
    "flow": {"predict": "velocity", "law": "logit_normal", "shift_base": 40.0},
    "sample": {"row": 64, "text_row": 64, "steps": 3, "guidance": 2.0, "solver": "dpm2m", "fps": 8.0, "frames": 17},
}
CONFIG["vae"]["linear_skip"] = True


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = train_tokenizer(["a red circle moves right"], tmp_path_factory.mktemp("t") / "tokenizer.model", 320)
    made = Model(CONFIG, {}, tokenizer)
    rng = np.random.default_rng(0)
    draw = lambda x: np.asarray(rng.normal(0, 0.2, x.shape), np.float32)
    made.params = jax.tree.map(draw, shapes_of(made))
    made.params["vae"] |= {"latent_std": np.ones(4, np.float32)}
    return made


def folder_of(model, tmp_path):
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_comes_back(model, tmp_path):
    folder = folder_of(model, tmp_path)
    (folder / "README.md").write_text("how it was made")
    back = load(folder)
    assert back.config == CONFIG and back.tokenizer.data == model.tokenizer.data
    for name, leaf in flat(model.params).items():
        np.testing.assert_array_equal(flat(back.params)[name], leaf)
    model.save(folder, "bfloat16")  # over the first one
    half = load(folder)
    for name, leaf in flat(model.params).items():
        assert flat(half.params)[name].dtype == np.float32
        np.testing.assert_allclose(flat(half.params)[name], leaf, rtol=2**-8)
    assert (folder / "README.md").read_text() == "how it was made"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_eight_bits_are_not_a_cast(model, tmp_path):
    with pytest.raises(InputError, match="export --dtype int8"):
        model.save(tmp_path / "m", dtype="int8")
    assert not (tmp_path / "m").exists()


def test_a_failed_save_loses_nothing(model, tmp_path):
    folder = folder_of(model, tmp_path)
    broken = Model({**CONFIG, "flow": {"predict": object()}}, model.params, model.tokenizer)
    with pytest.raises(TypeError):
        broken.save(folder)
    load(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match="mine"):
        model.save(tmp_path / "mine")


def test_bad_folders_get_one_sentence(model, tmp_path):
    folder = folder_of(model, tmp_path)

    def complains(about):
        with pytest.raises(InputError, match=about) as error:
            load(folder)
        assert "\n" not in str(error.value)

    vae = safetensors.load_file(folder / "vae.safetensors")
    whole = (folder / "vae.safetensors").read_bytes()
    (folder / "vae.safetensors").write_bytes(whole[: len(whole) // 2])
    complains("vae.safetensors is damaged")
    safetensors.save_file({**vae, "stranger": np.zeros(3)}, folder / "vae.safetensors")
    complains("no place for: stranger")
    name = sorted(vae)[0]
    safetensors.save_file({k: v for k, v in vae.items() if k != name}, folder / "vae.safetensors")
    complains(f"lacks a tensor of the model: {name}")
    safetensors.save_file({**vae, name: np.zeros((7, 7), np.float32)}, folder / "vae.safetensors")
    complains(rf"{name} is \[7, 7\]")
    (folder / "vae.safetensors").unlink()
    complains("has no vae.safetensors")
    (folder / "model.json").write_text(json.dumps({"format": 1, **CONFIG, "dit": {"widht": 3}}))
    complains("widht")
    mute = {name: value for name, value in CONFIG["sample"].items() if name != "frames"}
    (folder / "model.json").write_text(json.dumps({"format": 1, **CONFIG, "sample": mute}))
    complains("does not describe a model of this version: 'sample.frames'")
    (folder / "model.json").write_text(json.dumps({"format": 99, **CONFIG}))
    complains("format is 99|format 99")
    (folder / "model.json").write_text("{")
    complains("model.json is not")
    (folder / "model.json").unlink()
    complains("is not a model folder")


def test_any_size_is_exact_and_compiles_once(model):
    """Law 8: sizes, lengths and numbers of prompts share one program."""
    sampler.denoise.clear_cache()
    wanted = {"a red circle": ((20, 13), 6), "moves": ((16, 16), 1), "right": ((8, 40), 9)}
    for prompt, (size, frames) in wanted.items():
        video = model.generate(prompt, size=size, frames=frames)
        assert video.frames.shape == (frames, size[1], size[0], 3) and video.fps == 8.0
    sizes, frames = zip(*wanted.values(), strict=True)
    videos = model.generate(list(wanted), size=sizes, frames=frames)
    assert [v.frames.shape for v in videos] == [(f, h, w, 3) for (w, h), f in wanted.values()]
    assert sampler.denoise._cache_size() == 1


def test_the_same_seed_gives_the_same_bytes(model):
    draw = lambda seed: model.generate("a red circle", size=(16, 16), frames=1, seed=seed).frames
    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()


def test_lengths_and_sizes_that_cannot_be(model):
    assert len(model.generate("a", size=(16, 16), seconds=0.625).frames) == 5
    assert model.generate("a", size=(16.0, 16.0), frames=1.0, seed=-1).frames.shape == (1, 16, 16, 3)
    with pytest.raises(InputError, match="not in both"):
        model.generate(["a", "b"], size=(16, 16), frames=[5, 9], seconds=4)
    with pytest.raises(InputError, match="0 prompts"):
        model.generate([])
    for kind in ({"frames": 5, "seconds": 1.0}, {"frames": 0}, {"seconds": -1.0}, {"size": (0, 16)}, {"steps": 0}):
        with pytest.raises(InputError):
            model.generate("a", **{"size": (16, 16), **kind})
    with pytest.raises(InputError, match="only a VAE"):
        Model({"vae": CONFIG["vae"]}, {"vae": model.params["vae"]}).generate("a")


def test_encode_and_decode_keep_to_the_grid(model):
    rng = np.random.default_rng(0)
    video = Video(rng.integers(0, 256, (23, 19, 35, 3), np.uint8), 8.0)
    z = model.encode(video)
    assert z.shape == (6, 2, 4, 4) and z.dtype == np.float32
    assert model.decode(z).frames.shape == (21, 16, 32, 3)
    # streamed and filled up == the whole at once
    x = video.frames[:21, 1:17, 1:33].astype(np.float32) / 127.5 - 1
    whole = jax.jit(lambda x: model.vae.apply({"params": model.params["vae"]}, x, method="encode"))(x[None])[0]
    np.testing.assert_allclose(z, whole, atol=2e-4)
    # and in tiles
    np.testing.assert_allclose(model.encode(video, tile=2), z, atol=2e-4)
    difference = model.decode(z, tile=2).frames.astype(int) - model.decode(z).frames
    assert np.abs(difference).max() <= 1  # of 255, where rounding falls the other way
    with pytest.raises(InputError, match="too small"):
        model.encode(Video(video.frames[:, :7], 8.0))


def test_progress_counts_every_step(model):
    seen = []
    model.generate("a", size=(16, 16), frames=1, progress=lambda done, of: seen.append((done, of)))
    jax.effects_barrier()
    assert sorted(seen) == [(1, 3), (2, 3), (3, 3)]


def test_importing_and_sampling_need_no_tensorflow():
    code = """if True:
        import sys, sora_jax
        assert not {'jax', 'numpy'} & set(sys.modules), 'import sora_jax is heavy'
        sora_jax.load, sora_jax.Video, sora_jax.Canvas
        heavy = {'tensorflow', 'tensorflow_datasets', 'matplotlib', 'optax', 'orbax', 'apache_beam'} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_bucket_is_refused_before_a_folder_of_its_name_is_made(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video = Video(np.zeros((2, 8, 8, 3), np.uint8), 8.0)
    writers = [
        lambda: model.save("gs://bucket/model"),
        lambda: video.save("gs://bucket/a.mp4"),
        lambda: Video(video.frames[:1]).save("gs://bucket/a.png"),
        lambda: results.write("gs://bucket/out", "world", "tiny", {}, []),
        lambda: shards.write("gs://bucket/out", "clips", None, [], None, {}),
    ]
    for write in writers:
        with pytest.raises(InputError, match="only trainings write to gs://bucket/"):
            write()
    assert not list(tmp_path.iterdir())
