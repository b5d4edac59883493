"""Law 9: what is imported computes what its peer computes; their numbers are in tests/fixtures (see tests/parity)."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from sora_jax import drafts
from sora_jax.data.packing import patchify, positions
from sora_jax.diffusion import canvas, sampler, solvers
from sora_jax.errors import InputError
from sora_jax.model import flat, load, unflat
from sora_jax.models.dit import DiT
from sora_jax.models.text import TextEncoder, Tokenizer
from sora_jax.weights import convert, files, lora, umt5, wan, wan_vae
from sora_jax.weights.names import places

FIXTURES = Path(__file__).parent / "fixtures"
PATCH, LEVELS, ROW, TEXT = (1, 2, 2), 4, 36, 16


def close(ours, theirs) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1.0, float(np.abs(theirs).max())), rtol=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The pipeline that diffusers saved, as a model folder."""
    out = tmp_path_factory.mktemp("weights") / "model"
    convert.import_([FIXTURES / "wan"], out)
    return out


def part(folder: Path, name: str) -> tuple[dict, dict]:
    fields = json.loads((folder / "model.json").read_text())[name]
    return fields | {"dtype": "float32"}, unflat(safetensors.load_file(folder / f"{name}.safetensors"))


def row(peer: dict[str, np.ndarray], form: str) -> tuple:
    """Both clips side by side in one row, padding behind them: the DiT's arguments, and the clips' places in it."""
    inside = peer[f"{form}/a/x"].shape[0] * 4
    x, pos = np.zeros((1, ROW, inside), np.float32), np.zeros((1, ROW, 3), np.int32)
    seg, level, t = np.zeros((1, ROW), np.int32), np.zeros((1, ROW), np.int32), np.zeros((1, LEVELS), np.float32)
    ctx, txt_seg = np.zeros((1, TEXT, 32), np.float32), np.zeros((1, TEXT), np.int32)
    levels, spans, at, word = [0.0], {}, 0, 0
    for number, clip in enumerate("ab", 1):
        z = peer[f"{form}/{clip}/x"].transpose(1, 2, 3, 0)
        patches = patchify(z, PATCH)
        here = spans[clip] = slice(at, at := at + len(patches))
        x[0, here], seg[0, here] = patches, number
        pos[0, here] = positions([n // p for n, p in zip(z.shape, PATCH)])
        values, inverse = np.unique(peer[f"{form}/{clip}/t"], return_inverse=True)
        level[0, here] = np.array([len(levels) + i for i in range(len(values))])[inverse]
        levels += [value / 1000 for value in values]
        text = peer[f"{form}/{clip}/text"]
        there = slice(word, word := word + len(text))
        ctx[0, there], txt_seg[0, there] = text, number
    t[0, : min(len(levels), LEVELS)] = levels[:LEVELS]
    assert len(levels) <= LEVELS + 1
    return (x, pos, seg, t, level, ctx, txt_seg), spans


@pytest.mark.parametrize("form", ["t2v", "i2v", "ti2v"])
def test_the_dit_and_its_gradients_are_diffusers(folder, form):
    """Two clips packed in one row, as the peer computes each of them alone."""
    peer = safetensors.load_file(FIXTURES / "wan_dit.safetensors")
    fields, params = part(folder, "dit")
    if form == "i2v":
        fields["given"] = 20
        params["patch_in"]["bias"] = peer["i2v/patch_embedding.bias"]
        where = places(wan.names(fields), "diffusers", 2)
        params["patch_in"]["kernel"] = where["patch_embedding.weight"].layout.ours(peer["i2v/patch_embedding.weight"])
    inputs, spans = row(peer, form)
    dit = DiT(**{**fields, "patch": PATCH})
    cotangent = np.zeros((1, ROW, 64), np.float32)
    for clip, span in spans.items():
        cotangent[0, span] = patchify(peer[f"{form}/{clip}/cotangent"].transpose(1, 2, 3, 0), PATCH)

    def loss(params):
        out = dit.apply({"params": params}, *map(jnp.asarray, inputs))
        return (out * cotangent).sum(), out

    (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    for clip, span in spans.items():
        close(out[0, span], patchify(peer[f"{form}/{clip}/out"].transpose(1, 2, 3, 0), PATCH))
    gradient = convert.flat(gradient)
    for name, place in places(wan.names(fields), "diffusers", 2).items():
        if form == "i2v" and not name.startswith("patch_embedding"):
            continue
        ours = np.asarray(gradient[place.ours] if place.index is None else gradient[place.ours][place.index])
        close(place.layout.theirs(ours), peer[f"{form}/grad/{name}"])


def prompts() -> list[dict]:
    return json.loads((FIXTURES / "wan_text.json").read_text())


def test_texts_are_cleaned_and_cut_as_diffusers_and_transformers_do(folder):
    ids = safetensors.load_file(FIXTURES / "wan_text.safetensors")["ids"]
    tokenizer = Tokenizer(folder, rows=ids.shape[1], clean="wan")
    for facts, theirs in zip(prompts(), ids, strict=True):
        assert tokenizer.clean(facts["prompt"]) == facts["clean"]
        assert tokenizer.encode(facts["prompt"]) == theirs.tolist()


@pytest.mark.parametrize("kind", ["umt5", "t5"])
def test_text_encoders_are_transformers(folder, kind):
    """All prompts side by side in two packed rows; padding is zeros, which no mask hides from the DiT."""
    peer = safetensors.load_file(FIXTURES / "wan_text.safetensors")
    ids, states = peer["ids"].astype(np.int32), peer[kind] * peer["mask"][..., None]
    if kind == "umt5":
        fields, params = part(folder, "text")
    else:
        theirs = {name.removeprefix("t5/"): x for name, x in peer.items() if name.startswith("t5/")}
        theirs.pop("encoder.embed_tokens.weight", None)
        fields = umt5.fields({name: x.shape for name, x in theirs.items()}, {}) | {"dtype": "float32"}
        ours: dict[str, list] = {}
        for name, place in places(umt5.names(fields), "diffusers", fields["depth"]).items():
            ours.setdefault(place.ours, []).append(place.layout.ours(theirs.pop(name)))
        assert not theirs
        params = unflat({path: np.stack(x) if path.startswith("blocks/") else x[0] for path, x in ours.items()})
    rows = ids[:6].reshape(2, -1)
    seg = np.repeat([[1, 2, 3], [1, 2, 3]], ids.shape[1], 1)
    out = jax.jit(TextEncoder(**fields).apply)({"params": params}, jnp.asarray(rows), jnp.asarray(seg))
    close(out.reshape(6, *states.shape[1:]), states[:6])
    assert not np.asarray(out)[rows == 0].any()


SCHEDULES = ["unipc-5-20", "unipc-3-6", "unipc-12-40", "unipc-1-2", "euler-5-20"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_solvers_are_diffusers_step_for_step(name):
    """The same network of one line, and the peer's levels."""
    peer = safetensors.load_file(FIXTURES / "wan_schedulers.safetensors")
    theirs, sigmas = peer[f"{name}/x"].reshape(-1, 1, 1, 128), jnp.asarray(peer[f"{name}/sigmas"])[:, None, None]
    solver = name.partition("-")[0]

    def step(carry, at):
        x, past = carry
        t = at[1]
        x0 = x - t * (jnp.sin(2 * x) + x * t - jnp.cos(5 * t))
        x, past = solvers.advance(solver, x, x0, past, solvers.Levels(*at), lambda table: table[..., None], None)
        return (x, past), x

    early = jnp.concatenate([sigmas[:1], sigmas[:1], sigmas])[:, 0]
    way = (early[3:], early[2:-1], early[1:-2], early[:-3])
    x = jnp.asarray(theirs[0])
    _, ours = jax.lax.scan(step, (x, solvers.remembered(solver, x)), way)
    np.testing.assert_allclose(ours, theirs[1:], atol=1e-5 * float(np.abs(theirs).max()), rtol=0)


STEPS, PROMPT = [*(1 - np.arange(6) / 6 * 0.999), 0.0], "a small blue star falls &amp; bounces"


def as_the_peer(folder: Path, tmp_path: Path) -> tuple[Path, dict]:
    """A copy of the model that computes in float32 on texts of 32 rows, and its config."""
    model = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((model / "model.json").read_text())
    for part in config.keys() & {"text", "dit", "vae"}:
        config[part]["dtype"] = "float32"
    config["text"]["rows"], config["sample"] = 32, config["sample"] | {"row": 64, "text_row": 64}
    return model, config


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_whole_pipeline_is_diffusers(folder, tmp_path, name):
    """Prompt to frames: cleaning, tokens, text rows, guidance, whole timesteps, UniPC, VAE; with `two`, a second
    transformer (the first's weights times 0.8) below the noise level 0.8."""
    peer = safetensors.load_file(FIXTURES / "wan_painting.safetensors")
    model, config, guidance = *as_the_peer(folder, tmp_path), 4.0
    if name == "two":
        first = safetensors.load_file(model / "dit.safetensors")
        safetensors.save_file({path: x * np.float32(0.8) for path, x in first.items()}, model / "dit_low.safetensors")
        config["dit_low"], config["sample"]["switch"], guidance = config["dit"], 0.8, [4.0, 2.0]
    (model / "model.json").write_text(json.dumps(config))
    model = load(model)
    for part in model.params:  # of two transformers only the one that paints is on the device
        held = all(isinstance(x, jax.Array) for x in jax.tree.leaves(model.params[part]))
        assert held == (name == "one" or part in ("text", "vae"))
    how = dict(seed=7, steps=STEPS, guidance=guidance)
    (z,) = sampler.paint(model, [canvas.blank((2, 4, 6), 16)], [PROMPT], **how)
    close(z, peer[f"{name}/latents"].transpose(1, 2, 3, 0))
    error = model.decode(z).frames.astype(int) - peer[f"{name}/frames"].astype(int)
    assert np.abs(error).max() <= 2


def test_pictures_beside_the_noise_are_diffusers(folder, tmp_path):
    """As Wan 2.2's I2V has them: mask and latents of the first frame, or of the first and the last, in 20 channels."""
    peer = safetensors.load_file(FIXTURES / "wan_picture.safetensors")
    model, config = as_the_peer(folder, tmp_path)
    config["dit"]["given"] = 20
    (model / "model.json").write_text(json.dumps(config))
    wider, tensors = (
        safetensors.load_file(FIXTURES / "wan_dit.safetensors"),
        safetensors.load_file(model / "dit.safetensors"),
    )
    where = places(wan.names(config["dit"]), "diffusers", 2)["patch_embedding.weight"]
    tensors["patch_in/kernel"] = np.ascontiguousarray(where.layout.ours(wider["i2v/patch_embedding.weight"]))
    tensors["patch_in/bias"] = wider["i2v/patch_embedding.bias"]
    safetensors.save_file(tensors, model / "dit.safetensors")
    model, how = load(model), dict(seed=7, steps=STEPS, guidance=4.0)
    frames = np.stack([peer["first"]] * 4 + [peer["last"]])
    for name, known in (("one", [0]), ("both", [0, 4])):
        made = drafts.draft(frames, np.isin(np.arange(5), known)[:, None, None], 16.0)
        (z,) = sampler.paint(model, [drafts.canvas_of(model, made)], [PROMPT], **how)
        close(z, peer[name].transpose(1, 2, 3, 0))
    with pytest.raises(InputError, match="given 20 channels beside the noise"):
        sampler.paint(model, [canvas.blank((2, 4, 6), 16)], [PROMPT], **how)


LORAS = {"peft": [("peft", 1.0)], "original": [("original", 1.0)], "both": [("peft", 0.7), ("original", -0.4)]}


@pytest.mark.parametrize("name", LORAS)
def test_the_dit_with_loras_is_diffusers(folder, name):
    """As PEFT writes them, with alpha in the header, and in the original names, with alphas and biases; and both."""
    wanted = safetensors.load_file(FIXTURES / "wan_lora.safetensors")
    fields, params = part(folder, "dit")
    uses = [(FIXTURES / f"wan_lora_{file}.safetensors", weight) for file, weight in LORAS[name]]
    merged = unflat(lora.merged(flat(params), lora.chosen({"dit": fields}, uses)["dit"]))
    inputs, spans = row(safetensors.load_file(FIXTURES / "wan_dit.safetensors"), "t2v")
    out = jax.jit(DiT(**{**fields, "patch": PATCH}).apply)({"params": merged}, *map(jnp.asarray, inputs))
    theirs = [patchify(wanted[which].transpose(1, 2, 3, 0), PATCH) for which in (name, "neither")]
    close(out[0, spans["a"]], theirs[0])
    assert np.abs(theirs[0] - theirs[1]).max() > 0.1


def test_what_torch_saves_is_read_without_it():
    theirs = safetensors.load_file(FIXTURES / "wan_files.safetensors")
    ours = files.tensors([FIXTURES / "wan_files.pth"])
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        np.testing.assert_array_equal(files.read(tensor), theirs[name])


def test_original_names_are_diffusers_as_diffusers_converts_them():
    peer = json.loads((FIXTURES / "wan_names.json").read_text())
    vae = dict(multipliers=[1, 2, 4, 4], blocks=2, time=[1, 2, 2], shortcuts=False)
    for part, rows in (("dit", wan.names({})), ("vae", wan_vae.names(vae))):
        ours = {row.original.format(i=i): row.diffusers.format(i=i) for row in rows for i in (0, 1)}
        assert ours == peer[part]
