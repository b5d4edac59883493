"""Laws of the way in and out: every name has its place, what comes back is what went in, and files are only data."""

import json
import pickle
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from sora_jax import cli
from sora_jax.errors import InputError
from sora_jax.model import BUNDLED, dit_shapes, load, text_shapes
from sora_jax.train import configs
from sora_jax.weights import convert, files, published, umt5, wan
from sora_jax.weights.names import places

BF16 = np.dtype(ml_dtypes.bfloat16)
WAN = dict(width=24, depth=3, heads=2, mlp=40, channels=4, given=0)
UMT5 = dict(vocab=50, width=16, depth=2, heads=2, head_width=8, mlp=24, buckets=32, max_distance=128)
UMT5 |= dict(bias_every_layer=True)


def random(family, fields: dict, found: dict, dialect: str, dtype=BF16) -> dict[str, np.ndarray]:
    """A checkpoint of a family in a layout, with values that tell every element from every other."""
    rng = np.random.default_rng(0)
    shapes = {path: leaf.shape for path, leaf in convert.flat(family.shapes(fields, found)).items()}
    theirs = {}
    for name, place in places(family.names(fields), dialect, fields["depth"]).items():
        shape = shapes[place.ours] if place.index is None else shapes[place.ours][1:]
        theirs[name] = np.ascontiguousarray(place.layout.theirs(rng.standard_normal(shape, np.float32).astype(dtype)))
    return theirs


def dit(folder: Path, dialect: str = "diffusers", shards: int = 1, dtype=BF16, **changes) -> dict[str, np.ndarray]:
    """Writes a tiny transformer as its peers would, in shards with an index, and returns its tensors."""
    fields = {**WAN, **changes}
    tensors = random(wan, fields, {"text_in/kernel": (16, 24)}, dialect, dtype)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"num_heads": 2} if dialect == "original" else {"num_attention_heads": 2})
    )
    names = sorted(tensors)
    where = {name: f"model-{i * shards // len(names)}.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        safetensors.save_file({n: tensors[n] for n in names if where[n] == file}, folder / file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return tensors


def same(a: Path, b: Path) -> bool:
    return a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("dialect, shards", [("original", 1), ("diffusers", 3)])
def test_out_and_in_again_is_the_same_bit_for_bit(tmp_path, dialect, shards):
    theirs = dit(tmp_path / "theirs", dialect, shards)
    facts = convert.import_([tmp_path / "theirs"], tmp_path / "ours")
    assert facts["parameters"] == {"dit": sum(x.size for x in theirs.values())}
    ours = safetensors.load_file(tmp_path / "ours" / "dit.safetensors")
    up = "blocks.2.ffn.0.weight" if dialect == "original" else "blocks.2.ffn.net.0.proj.weight"
    np.testing.assert_array_equal(ours["blocks/mlp_up/kernel"][2], theirs[up].T)
    norm = "blocks.1.norm3.bias" if dialect == "original" else "blocks.1.norm2.bias"
    np.testing.assert_array_equal(ours["blocks/cross_norm/bias"][1], theirs[norm])
    assert {x.dtype for x in ours.values()} == {BF16}

    convert.export(tmp_path / "ours", tmp_path / "back")
    back = safetensors.load_file(tmp_path / "back" / "transformer" / "diffusion_pytorch_model.safetensors")
    if dialect == "diffusers":
        assert back.keys() == theirs.keys()
        for name, tensor in theirs.items():
            np.testing.assert_array_equal(back[name], tensor)
    convert.import_([tmp_path / "back"], tmp_path / "again")
    for name in ("dit.safetensors", "model.json"):
        assert same(tmp_path / "ours" / name, tmp_path / "again" / name)


def test_export_in_shards_is_the_same(tmp_path, monkeypatch):
    dit(tmp_path / "theirs")
    convert.import_([tmp_path / "theirs"], tmp_path / "ours")
    monkeypatch.setattr(convert, "SHARD", 13_000)
    paths = convert.export(tmp_path / "ours", tmp_path / "back")["files"]["dit"]
    sizes = [sum(x.nbytes for x in safetensors.load_file(path).values()) for path in paths]
    assert len(paths) > 3 and max(sizes) <= 13_000
    convert.import_([tmp_path / "back"], tmp_path / "again")
    assert same(tmp_path / "ours" / "dit.safetensors", tmp_path / "again" / "dit.safetensors")


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("dialect", ["original", "diffusers"])
def test_a_text_encoder_comes_and_goes(tmp_path, every, dialect):
    fields = {**UMT5, "bias_every_layer": every}
    theirs = random(umt5, fields, {}, dialect, np.float32)
    if dialect == "diffusers":  # as transformers' own files have it
        theirs["encoder.embed_tokens.weight"] = theirs["shared.weight"]
    (tmp_path / "theirs").mkdir()
    safetensors.save_file(theirs, tmp_path / "theirs" / "model.safetensors")
    convert.import_([tmp_path / "theirs" / "model.safetensors"], tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "model.json").read_text())["text"]
    assert fields.items() <= config.items() and config["rows"] == 512
    convert.export(tmp_path / "ours", tmp_path / "back")
    convert.import_([tmp_path / "back"], tmp_path / "again")
    assert same(tmp_path / "ours" / "text.safetensors", tmp_path / "again" / "text.safetensors")


def refused(about: str, *sources: Path, out: Path | None = None) -> None:
    with pytest.raises(InputError, match=about) as error:
        convert.import_(sources, out or sources[0].parent / "out")
    assert "\n" not in str(error.value)


def test_names_without_a_place_and_places_without_a_name_are_listed(tmp_path):
    theirs = dit(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model-0.safetensors"
    gone = {k: v for k, v in theirs.items() if k not in ("blocks.1.attn1.norm_q.weight", "proj_out.bias")}
    safetensors.save_file({**gone, "blocks.0.stranger": np.zeros(3, BF16)}, file)
    refused("no place for blocks.0.stranger; it lacks blocks.1.attn1.norm_q.weight, proj_out.bias", tmp_path / "theirs")
    safetensors.save_file({**theirs, "patch_embedding.bias": np.zeros(7, BF16)}, file)
    refused(r"patch_embedding.bias is \[7\]", tmp_path / "theirs")
    safetensors.save_file({**theirs, "blocks.1.ffn.net.2.bias": np.zeros(7, BF16)}, file)
    refused(r"blocks.1.ffn.net.2.bias is \[7\], unlike", tmp_path / "theirs")
    safetensors.save_file({**theirs, "proj_out.bias": np.zeros(16, np.int8)}, file)
    refused("proj_out.bias is stored as I8", tmp_path / "theirs")
    assert not (tmp_path / "out").exists()


def test_what_is_no_checkpoint_gets_one_sentence(tmp_path):
    theirs = dit(tmp_path / "theirs", shards=2)
    convert.import_([tmp_path / "theirs"], tmp_path / "ours")
    refused("is a model folder of sora_jax already", tmp_path / "ours")
    refused("there is no file or folder", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    refused("no checkpoint in", tmp_path / "empty")
    refused("is not empty|holds something", tmp_path / "theirs", out=tmp_path / "theirs")
    file = tmp_path / "theirs" / "model-1.safetensors"
    whole = file.read_bytes()
    for cut in (0, 4, 9, 100, len(whole) - 2):
        file.write_bytes(whole[:cut])
        refused("damaged or cut short", tmp_path / "theirs")
    file.unlink()
    refused("lists model-1.safetensors, which is not there", tmp_path / "theirs")
    safetensors.save_file({"a": theirs["proj_out.bias"]}, tmp_path / "other.safetensors")
    refused("no model that is known here.*holds a$", tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="is not empty"):
        convert.export(tmp_path / "ours", tmp_path / "theirs")


def test_parts_are_added_to_a_model_one_by_one(tmp_path):
    dit(tmp_path / "theirs")
    convert.import_([tmp_path / "theirs"], tmp_path / "ours")
    safetensors.save_file(random(umt5, UMT5, {}, "original"), tmp_path / "t5.safetensors")
    convert.import_([tmp_path / "t5.safetensors"], tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "model.json").read_text())
    assert {"dit", "text", "flow", "sample"} <= config.keys() and config["dit"]["depth"] == 3
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [
        "dit.safetensors",
        "model.json",
        "text.safetensors",
    ]


# Pickles


def archive(path: Path, state) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(state, 2))
        file.writestr("archive/version", "3")
    return path


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("/tmp/sora_jax_was_here"),)


def test_a_pickle_runs_nothing(tmp_path):
    for name, state in (("evil", {"head.head.weight": Evil()}), ("system", {"a": pickle.PickleBuffer}), ("eval", eval)):
        with pytest.raises(InputError, match="is not run") as error:
            files.torch(archive(tmp_path / f"{name}.pth", state))
        assert "\n" not in str(error.value)
    assert not Path("/tmp/sora_jax_was_here").exists()


def test_a_pickle_of_something_else_gets_one_sentence(tmp_path):
    for state in (["a"], {"a": 3}, {"state_dict": {}, "epoch": 1}, {"a": {"b": 1}}):
        with pytest.raises(InputError, match="more than names and tensors"):
            files.torch(archive(tmp_path / "x.pth", state))
    for content in (b"", b"not a zip", b"\x80\x02}q\x00."):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(InputError, match="not a checkpoint that torch"):
            files.torch(tmp_path / "x.pth")


# Published models


@pytest.mark.parametrize("name", published.MODELS)
def test_published_models_have_the_published_number_of_parameters(name):
    model = published.MODELS[name]
    assert sum(x.size for x in jax.tree.leaves(dit_shapes(model.dit, published.TEXT["width"]))) == model.parameters
    config = configs.read(f"configs/dit.py:{name}")
    assert model.dit.items() <= config.dit.to_dict().items() and config.dit.patch == (1, 2, 2)


def test_umt5_xxl_has_the_published_number_of_parameters():
    assert sum(x.size for x in jax.tree.leaves(text_shapes(published.TEXT))) == 5_680_910_336


def test_the_command_says_what_it_made(tmp_path, capsys):
    dit(tmp_path / "theirs", "original")
    assert cli.main(["import", "wan", str(tmp_path / "theirs"), "--out", str(tmp_path / "ours")]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["dit"] > 10_000
    line = ["export", str(tmp_path / "ours"), "--format", "diffusers", "--out", str(tmp_path / "back")]
    assert cli.main(line) == 0 and json.loads(capsys.readouterr().out)["files"].keys() == {"dit"}
    assert cli.main(line) == 2 and "is not empty" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"has no vae.safetensors yet"):
        load(tmp_path / "ours")
    with pytest.raises(InputError, match="depends on the clip's size"):
        convert.export(BUNDLED["tiny"], tmp_path / "tiny")
