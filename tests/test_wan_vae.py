"""The VAEs of Wan 2.1 and 2.2: their size, and the numbers that diffusers computes with the same random weights.

tests/fixtures/wan_vae.safetensors was written by tests/parity/wan_vae.py; weights and inputs are drawn here again.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

import sora_jax
from sora_jax.errors import InputError
from sora_jax.models.vae_stream import stream_decode, stream_encode
from sora_jax.train import configs
from sora_jax.weights import convert, wan_vae
from sora_jax.weights.names import places

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "parity"))

from drawn import drawn, weight  # noqa: E402 (its folder is named above)

FIXTURE = safetensors.load_file(HERE / "fixtures" / "wan_vae.safetensors")
SIZES = dict(multipliers=[1, 2, 4, 4], blocks=2, time=[1, 2, 2], space=[2, 2, 2], linear_skip=False, dtype="float32")
FORMS = {
    "2.1": dict(width=4, decoder_width=0, patch=1, channels=16, shortcuts=False) | SIZES,
    "2.2": dict(width=4, decoder_width=6, patch=2, channels=48, shortcuts=True) | SIZES,
}
KEPT = [0, 1, 2, 3, 4, 39, 40, 78, 79, 80]  # of 81 frames


@pytest.mark.parametrize("variant, parameters", [("wan", 126_892_531), ("wan-2.2", 704_688_668)])
def test_published_sizes(variant, parameters):
    fields = configs.read(f"configs/vae.py:{variant}").vae
    shapes = convert.flat(wan_vae.shapes(fields, {}))
    assert sum(np.prod(x.shape) for path, x in shapes.items() if path not in wan_vae.CONSTANTS) == parameters
    assert {place.ours for place in places(wan_vae.names(fields), "original", 0).values()} == (
        shapes.keys() - set(wan_vae.CONSTANTS)
    )


def written(folder: Path, form: str, dialect: str, **beside) -> dict[str, np.ndarray]:
    """Writes a narrow VAE as its peers would, and returns its tensors."""
    shapes = {path: leaf.shape for path, leaf in convert.flat(wan_vae.shapes(FORMS[form], {})).items()}
    theirs = {}
    for name, place in places(wan_vae.names(FORMS[form]), dialect, 0).items():
        shape = place.layout.theirs(np.zeros(shapes.pop(place.ours), bool)).shape
        theirs[name] = weight(name, shape)
    assert shapes.keys() == set(wan_vae.CONSTANTS), "every parameter has a name"
    folder.mkdir(parents=True)
    safetensors.save_file(theirs, folder / "vae.safetensors")
    if beside:
        (folder / "config.json").write_text(json.dumps(beside))
    return theirs


@pytest.fixture(scope="module", params=FORMS)
def imported(request, tmp_path_factory):
    """(form, model): a checkpoint as diffusers' would be, imported and loaded."""
    folder = tmp_path_factory.mktemp("vae")
    written(folder / "theirs", request.param, "diffusers")
    convert.import_([folder / "theirs"], folder / "ours")
    return request.param, sora_jax.load(folder / "ours")


def case(form: str, frames: int):
    """(video [1 f h w 3], latents before normalisation [1 f' h' w' c], what diffusers made of them)."""
    key = next(key.rpartition("/")[0] for key in FIXTURE if key.startswith(f"{form}/{frames}x"))
    size = tuple(int(n) for n in key.partition("/")[2].split("x"))
    theirs = {name: FIXTURE[f"{key}/{name}"].transpose(0, 2, 3, 4, 1) for name in ("mean", "logvar", "pixels")}
    video = np.clip(drawn(key, (1, 3, *size)), -1, 1).transpose(0, 2, 3, 4, 1)
    z = drawn(f"{key}/z", FIXTURE[f"{key}/mean"].shape).transpose(0, 2, 3, 4, 1)
    return video, z, theirs


def test_a_clip_of_odd_size_as_diffusers(imported):
    form, model = imported
    video, z, theirs = case(form, 5)
    params = {"params": model.params["vae"]}
    mean, logvar = jax.jit(lambda x: model.vae.apply(params, x, method="moments"))(video)
    np.testing.assert_allclose(mean, theirs["mean"], atol=1e-4)
    np.testing.assert_allclose(logvar, theirs["logvar"], atol=1e-4)
    pixels = jax.jit(lambda z: model.vae.apply(params, z, method="pixels"))(z)
    np.testing.assert_allclose(np.clip(pixels, -1, 1), theirs["pixels"], atol=1e-4)


@pytest.mark.slow
def test_images_and_streamed_clips_as_diffusers(imported):
    form, model = imported
    vae, params = model.vae, model.params["vae"]
    mean, std = np.asarray(params["latent_mean"]), np.asarray(params["latent_std"])
    for frames in (1, 17, 81):
        video, z, theirs = case(form, frames)
        chunks = [video[:, :1], *(video[:, i : i + 4] for i in range(1, frames, 4))]
        ours = np.concatenate([np.asarray(x) for x in stream_encode(vae, params, chunks)], 1)
        np.testing.assert_allclose(ours * std + mean, theirs["mean"], atol=1e-4)
        ours = np.concatenate([np.asarray(x) for x in stream_decode(vae, params, (z - mean) / std, 1)], 1)
        ours = ours[:, KEPT] if frames == 81 else ours
        np.testing.assert_allclose(np.clip(ours, -1, 1), theirs["pixels"], atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dialect", ["original", "diffusers"])
def test_a_vae_comes_and_goes(tmp_path, form, dialect):
    theirs = written(tmp_path / "theirs", form, dialect)
    convert.import_([tmp_path / "theirs"], tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "model.json").read_text())["vae"] == FORMS[form]
    ours = safetensors.load_file(tmp_path / "ours" / "vae.safetensors")
    mean, std = wan_vae.STATISTICS[FORMS[form]["channels"]]
    np.testing.assert_array_equal(ours["latent_mean"], np.float32(mean))
    np.testing.assert_array_equal(ours["latent_std"], np.float32(std))
    qkv = {"original": "decoder.middle.1", "diffusers": "decoder.mid_block.attentions.0"}[dialect] + ".to_qkv.weight"
    np.testing.assert_array_equal(ours["decoder/mid_attention/qkv/kernel"], theirs[qkv][:, :, 0, 0].T)

    convert.export(tmp_path / "ours", tmp_path / "back")
    back = safetensors.load_file(tmp_path / "back" / "vae" / "diffusion_pytorch_model.safetensors")
    assert sum(x.size for x in back.values()) == sum(x.size for x in theirs.values())
    if dialect == "diffusers":
        assert back.keys() == theirs.keys() and all((back[name] == theirs[name]).all() for name in theirs)
    convert.import_([tmp_path / "back"], tmp_path / "again")
    for name in ("vae.safetensors", "model.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_config_beside_a_vae_tells_its_latents(tmp_path):
    mean, std = [i / 3 for i in range(16)], [1 + i / 7 for i in range(16)]
    written(tmp_path / "theirs", "2.1", "diffusers", latents_mean=mean, latents_std=std)
    convert.import_([tmp_path / "theirs"], tmp_path / "ours")
    convert.export(tmp_path / "ours", tmp_path / "back")
    convert.import_([tmp_path / "back"], tmp_path / "again")
    for folder in ("ours", "again"):
        ours = safetensors.load_file(tmp_path / folder / "vae.safetensors")
        np.testing.assert_array_equal(ours["latent_mean"], np.float32(mean))
        np.testing.assert_array_equal(ours["latent_std"], np.float32(std))
    written(tmp_path / "other", "2.1", "diffusers", latents_mean=mean[1:])
    with pytest.raises(InputError, match="mean and std of this VAE's latents of 16 channels"):
        convert.import_([tmp_path / "other"], tmp_path / "none")
