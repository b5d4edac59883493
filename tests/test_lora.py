"""Laws of LoRA: added beforehand or beside is the same, B = 0 is nothing, out and in again is the same, and the weights
beside which one is trained stand still."""

import functools
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

import sora_jax
from sora_jax import cli
from sora_jax.errors import InputError
from sora_jax.model import Model, dit_shapes, flat, load, unflat
from sora_jax.models.dit import DiT
from sora_jax.pod import mesh as pod
from sora_jax.train import checkpoint, configs, loop, tasks
from sora_jax.train.export import export
from sora_jax.train.init import taken
from sora_jax.weights import lora

FIELDS = dict(width=28, depth=2, heads=2, mlp=48, channels=4, given=0, patch=(1, 2, 2), remat=False, dtype="float32")
TEXT = 12


@functools.cache
def shapes() -> dict:
    return dit_shapes(FIELDS, TEXT)


def values(shapes: dict, seed: int = 0, scale: float = 0.1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    draw = lambda leaf: np.float32(scale) * rng.standard_normal(leaf.shape, np.float32)
    return {path: draw(leaf) for path, leaf in flat(shapes).items()}


def a_lora(rank: int = 3, seed: int = 1) -> dict[str, np.ndarray]:
    """As `begin` makes them, but with a B that is not zero."""
    return values(lora.shapes(shapes(), rank), seed)


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
    return values(shapes())


@pytest.fixture(scope="module")
def out():
    """The DiT's output for parameters as they are, or with what is done beside a Dense."""
    rng = np.random.default_rng(2)
    x, ctx = rng.standard_normal((1, 12, 16), np.float32), rng.standard_normal((1, 5, TEXT), np.float32)
    pos = np.stack(np.unravel_index(np.arange(12), (2, 2, 3)), -1)[None].astype(np.int32)
    ones = np.ones((1, 12), np.int32)
    inputs = (x, pos, ones, np.float32([[0.3]]), 0 * ones, ctx, np.ones((1, 5), np.int32))
    return jax.jit(lambda tree: DiT(**FIELDS).apply({"params": tree}, *inputs))


def test_added_beforehand_is_applied_beside(params, out):
    """Of several, each with its weight; and as a product of its own beside every matrix."""
    first, second = a_lora(3, 1), a_lora(2, 2)
    merged = out(unflat(lora.merged(params, [(first, 0.7, "a"), (second, -0.4, "b")])))
    beside = lora.applied(lora.applied(unflat(params), unflat(first), 0.7), unflat(second), -0.4)
    np.testing.assert_allclose(merged, out(beside), atol=1e-5)
    assert np.abs(merged - out(unflat(params))).max() > 0.1

    stacks = {path: x for path, x in params.items() if lora.TRAINED.fullmatch(path)}

    def product(next_, args, kwargs, context):
        """x W + (x A) B, for every Dense whose kernel is one of a stack's: the law, computed the other way."""
        y = next_(*args, **kwargs)
        if not isinstance(context.module, nn.Dense):
            return y
        kernel = context.module.variables["params"]["kernel"]
        for path, stack in stacks.items():
            a, b = (first[path.replace("kernel", f"lora_{x}")] for x in "ab")
            for i, w in enumerate(stack):
                if w.shape == kernel.shape:
                    y = y + jnp.where((w == kernel).all(), args[0] @ a[i] @ b[i], 0)
        return y

    with nn.intercept_methods(product):
        found = jax.jit(lambda tree: out.__wrapped__(tree))(unflat(params))
    np.testing.assert_allclose(found, out(lora.applied(unflat(params), unflat(first))), atol=1e-5)


def test_a_new_one_changes_nothing(params):
    new = lora.begin(jax.random.key(0), unflat(params), 4)
    applied = flat(lora.applied(unflat(params), new))
    for path, value in params.items():
        np.testing.assert_array_equal(applied[path], value)
    assert len(flat(new)) == 20 and all(np.abs(x).max() > 0 for path, x in flat(new).items() if path.endswith("lora_a"))
    with pytest.raises(InputError, match=r"config.lora.rank is 99; it must be 1 to 28"):
        lora.begin(jax.random.key(0), unflat(params), 99)


def test_rounded_once_in_the_type_of_the_weights(params):
    half = {path: x.astype(jnp.bfloat16) for path, x in params.items()}
    merged = lora.merged(half, [(a_lora(), 0.5, "a")])
    exact = lora.merged({path: x.astype(np.float32) for path, x in half.items()}, [(a_lora(), 0.5, "a")])
    for path, value in merged.items():
        assert value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(value, exact[path].astype(jnp.bfloat16))


# Files


@pytest.mark.parametrize("dialect", ["original", "diffusers"])
def test_out_and_in_again_is_the_same(tmp_path, dialect):
    added = a_lora()
    rng = np.random.default_rng(3)
    whole = flat(shapes())
    biases = ["blocks/self/q/bias", "blocks/mlp_down/bias", "patch_in/bias"]
    more = ["blocks/self/q_norm/scale", "blocks/cross_norm/scale", "blocks/modulation", "head_modulation"]
    more += ["head/kernel", "patch_in/kernel"]
    added |= {"patch_in/lora_a": rng.standard_normal((16, 2), np.float32)}
    added |= {"patch_in/lora_b": rng.standard_normal((2, 28), np.float32)}
    for path in biases + (more if dialect == "original" else []):
        added[path] = rng.standard_normal(whole[path].shape, np.float32)
    lora.write(tmp_path / "a.safetensors", added, FIELDS, dialect)
    found = lora.read(tmp_path / "a.safetensors", FIELDS)
    assert found.keys() == {"dit"} and found["dit"].keys() == added.keys()
    for path, value in added.items():
        np.testing.assert_array_equal(found["dit"][path], value)
    with pytest.raises(InputError, match="no place for blocks/modulation"):
        lora.write(tmp_path / "b.safetensors", {"blocks/modulation": np.ones((2, 6, 28))}, FIELDS)
    lora.write(tmp_path / "low.safetensors", a_lora(), FIELDS, low=True)
    assert lora.read(tmp_path / "low.safetensors", FIELDS).keys() == {"dit_low"}


def pair(rng, rank: int, out: int = 28, n: int = 28) -> tuple[np.ndarray, np.ndarray]:
    return rng.standard_normal((rank, n), np.float32), rng.standard_normal((out, rank), np.float32)


def test_every_way_to_say_the_same(tmp_path):
    """alpha over r, PEFT's own files, musubi's names, ranks of their own, blocks left out: all are alpha / r B A."""
    rng = np.random.default_rng(4)
    (a, b), (a2, b2) = pair(rng, 4), pair(rng, 2, 48)
    q, up = (2.0 / 4 * b @ a).T, (3.0 / 2 * b2 @ a2).T
    alphas = {"a": np.array(2, np.float32), "b": np.array(3, np.float32)}

    def original(prefix, q, up, down="lora_down.weight", upper="lora_up.weight"):
        one, two = f"{prefix}{q}", f"{prefix}{up}"
        return {f"{one}.{down}": a, f"{one}.{upper}": b, f"{one}.alpha": alphas["a"],
                f"{two}.{down}": a2, f"{two}.{upper}": b2, f"{two}.alpha": alphas["b"]}  # fmt: skip

    names = "blocks.1.cross_attn.q", "blocks.0.ffn.0"
    peft = {"blocks.1.attn2.to_q": (a, b), "blocks.0.ffn.net.0.proj": (a2, b2)}
    peft = {f"{name}.lora_{x}.weight": y for name, has in peft.items() for x, y in zip("AB", has)}
    settings = {"r": 4, "lora_alpha": 2, "alpha_pattern": {r"ffn\.net\.0\.proj": 3}}
    header = {f"transformer.{name}": value for name, value in settings.items()}
    ways = {
        "original": (original("diffusion_model.", *names), None),
        "bare": (original("", *names), None),
        "musubi": (original("lora_unet_", *(name.replace(".", "_") for name in names)), None),
        "diffusers": (
            {f"transformer.{name}": x for name, x in peft.items()},
            {"lora_adapter_metadata": json.dumps(header)},
        ),
        "peft": ({f"base_model.model.{name}": x for name, x in peft.items()}, None),
    }
    for way, (tensors, about) in ways.items():
        (tmp_path / way).mkdir()
        safetensors.save_file(tensors, tmp_path / way / "adapter_model.safetensors", about)
        if way == "peft":
            (tmp_path / way / "adapter_config.json").write_text(json.dumps(settings))
        found = lora.read(tmp_path / way, FIELDS)["dit"]
        assert found.keys() == {f"blocks/{x}/lora_{y}" for x in ("cross/q", "mlp_up") for y in "ab"}
        added = {
            root: found[f"{root}/lora_a"] @ found[f"{root}/lora_b"] for root in ("blocks/cross/q", "blocks/mlp_up")
        }
        np.testing.assert_allclose(added["blocks/cross/q"], np.stack([0 * q, q]), atol=1e-5)
        np.testing.assert_allclose(added["blocks/mlp_up"], np.stack([up, 0 * up]), atol=1e-5)


def test_what_does_not_fit_gets_one_sentence(tmp_path):
    rng, path = np.random.default_rng(5), tmp_path / "a.safetensors"
    a, b = pair(rng, 4)

    params = values(shapes())

    def refused(about: str, **tensors) -> None:
        safetensors.save_file({name.replace("__", "."): x for name, x in tensors.items()}, path)
        with pytest.raises(InputError, match=about) as error:
            lora.merged(params, [(lora.read(path, FIELDS)["dit"], 1.0, path)])
        assert "\n" not in str(error.value)

    module = "diffusion_model__blocks__0__self_attn__q__"
    refused("no place for diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight",
            diffusion_model__blocks__0__cross_attn__k_img__lora_A__weight=a)  # fmt: skip
    refused("no place for diffusion_model.blocks.2.self_attn.q.lora_A.weight",
            diffusion_model__blocks__2__self_attn__q__lora_A__weight=a)  # fmt: skip
    refused("no place for .*dora_scale", **{module + "dora_scale": a})
    refused("only one of the two", **{module + "lora_A__weight": a})
    refused(r"another transformer: blocks/self/q/lora_a is \[2, 20, 4\], not \[2, 28, 4\]",
            **{module + "lora_A__weight": a[:, :20], module + "lora_B__weight": b})  # fmt: skip
    refused(r"another transformer: blocks/self/q/bias is \[2, 5\]", **{module + "diff_b": a[0, :5]})
    with pytest.raises(InputError, match="there is no LoRA"):
        lora.read(tmp_path / "b.safetensors", FIELDS)


# A model


@pytest.fixture(scope="module")
def style(tmp_path_factory) -> Path:
    """A LoRA of the bundled model."""
    path, model = tmp_path_factory.mktemp("lora") / "style.safetensors", sora_jax.load("tiny")
    lora.write(path, values(lora.shapes(dit_shapes(model.config["dit"], model.text.width), 4), 6), model.config["dit"])
    return path


def test_loaded_with_several(style):
    plain, one = sora_jax.load("tiny"), sora_jax.load("tiny", lora=[(style, 0.5)])
    added = unflat(lora.read(style, plain.config["dit"])["dit"])
    wanted = lora.applied(plain.params["dit"], added, 0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params["dit"], wanted)
    none = sora_jax.load("tiny", lora=[(style, 0.5), (style, -0.5)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), none.params["dit"], plain.params["dit"])
    with pytest.raises(InputError, match=r"style.safetensors is for a transformer that this model does not have"):
        sora_jax.load("tiny", lora=[(style, 1.0, "low")])


def test_of_two_transformers_the_one_it_is_for(style):
    config = sora_jax.load("tiny").config
    config = {**config, "dit_low": config["dit"]}
    names = lambda *use: lora.chosen(config, [use]).keys()
    assert names(style) == {"dit", "dit_low"} and names(style, 1.0, "high") == {"dit"}
    assert names(style, 1.0, "low") == {"dit_low"}


def test_the_command_paints_with_it(style, tmp_path, capsys):
    line = ["generate", "a red star", "--size", "16x16", "--steps", "1", "--out"]
    assert cli.main([*line, str(tmp_path / "a.png")]) == 0
    assert cli.main([*line, str(tmp_path / "b.png"), "--lora", f"{style}=0.9", "--lora", str(style)]) == 0
    assert cli.main([*line, str(tmp_path / "c.png"), "--lora", f"{style}=2", "--lora", f"{style}=-2"]) == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == c != b
    assert cli.main([*line, str(tmp_path / "d.png"), "--lora", str(tmp_path / "none")]) == 2
    with pytest.raises(SystemExit):
        cli.main([*line, str(tmp_path / "d.png"), "--lora", f"{style}=a"])


# Training


def config(**changes):
    """Of a LoRA of a DiT and a text encoder that are narrower than the bundled model's."""
    c = configs.read("configs/dit.py:tiny,lora=4").copy_and_resolve_references()
    c.unlock()
    c.dit.update(width=16, depth=1, heads=2, mlp=24)
    c.text.update(width=8, depth=1, heads=1, head_width=8, mlp=8)
    c.update(steps=4, eval_every=0, picture_every=0, save_every=2, prompts=())
    c.opt.update(warmup=0, schedule="constant")  # a run of fewer steps is the beginning of a longer one
    c.update_from_flattened_dict(changes)
    return c.lock()


def batches(cursor, host: int = 0, hosts: int = 1):
    """Rows of one clip of eight patches, another one each step."""
    pos = np.stack(np.unravel_index(np.arange(8), (2, 2, 2)), -1)[None].astype(np.int32)
    ones, step = np.ones((1, 8), np.int32), cursor["step"] if cursor else 0
    while True:
        x, step = np.random.default_rng(step).standard_normal((1, 8, 48), np.float32), step + 1
        grid = np.full((1, 1, 3), 2, np.int32)
        yield {"x": x, "pos": pos, "seg": ones, "grid": grid, "txt": 3 * ones, "txt_seg": ones}, {"step": step}


def drawn(task) -> dict:
    """Random weights through which everything can be seen: the head is no longer zero."""
    params = jax.jit(task.init)(jax.random.key(0))
    params["dit"]["head"]["kernel"] += 1.0
    return params


def test_the_variants():
    for variant, rank, init in (("tiny,lora=8", 8, "tiny"), ("wan-1.3b,lora=16", 16, "")):
        c = configs.read(f"configs/dit.py:{variant}")
        assert c.lora.rank == rank and c.init == init and c.opt.name == "adamw"
    assert configs.read("configs/dit.py:wan-5b,tune").frozen == ("text",)
    for wrong in ("tiny,lora=0", "tiny,lora", "tiny,tune", "wan-5b,tuna"):
        with pytest.raises(InputError, match="has no option"):
            configs.read(f"configs/dit.py:{wrong}")


def test_the_base_lies_by_the_same_rules_and_a_pods_step_is_of_the_lora_alone():
    c = configs.read("configs/dit.py:wan-1.3b,lora=16", ["tokenizer=tiny"])
    task, mesh = tasks.make(c), pod.make({"data": 1, "fsdp": 2, "context": 2, "ring": 1, "tensor": 2})
    _, abstract, _ = loop.prepare(task, c, mesh)
    rule = pod.RULES[0][2]
    with pytest.raises(InputError, match=r"dit and text would stay as drawn: give --config.init"):
        taken(c.init, loop.frozen(task, c, mesh))
    still = loop.frozen(task, c, mesh)
    q = still["dit"]["blocks"]["self"]["q"]["kernel"]
    assert q.sharding.spec == pod.fitting(q.shape, rule, dict(mesh.shape)) and q.dtype == jnp.bfloat16
    state = {part: sum(x.size for x in jax.tree.leaves(abstract[part])) for part in ("params", "ema", "opt")}
    size = 30 * 16 * (8 * (1536 + 1536) + 2 * (1536 + 8960))
    assert abstract["params"].keys() == {"lora"} and state["params"] == state["ema"] == size
    assert 2 * size <= state["opt"] <= 2 * size + 10
    pair = abstract["params"]["lora"]["blocks"]["mlp_down"]
    assert pair["lora_a"].sharding.spec[-2] == "tensor" and pair["lora_b"].sharding.spec[-1] == pod.WEIGHTS


@pytest.mark.slow
def test_trained_killed_resumed_and_exported(tmp_path, capsys):
    """On its own clips, and never evaluated: the loop, the checkpoints and both ways out are those of every run."""
    tiny, base = load("tiny"), tmp_path / "base"
    drawn_, facts = drawn(tasks.make(config())), config().to_dict()
    own = {part: facts[part] for part in ("text", "dit", "flow", "sample")}
    Model({"vae": tiny.config["vae"], **own}, {"vae": tiny.params["vae"], **{p: drawn_[p] for p in ("text", "dit")}},
          tiny.tokenizer).save(base)  # fmt: skip

    def train(name: str, steps: int) -> dict:
        c = config(steps=steps, init=str(base))
        task = tasks.make(c)._replace(batches=batches, evaluate=lambda params, key: {})
        return loop.run(task, c, tmp_path / name)

    whole = train("whole", 4)
    train("cut", 2)
    assert train("cut", 4)["digest"] == whole["digest"] and whole["skipped"] == 0
    state, _ = checkpoint.restore(tmp_path / "whole" / "checkpoints")
    assert state["params"].keys() == state["ema"].keys() == {"lora"}
    learned = {path: np.asarray(x) for path, x in flat(state["ema"]["lora"]).items()}
    assert all(np.abs(x).max() > 0 for x in learned.values())

    file = tmp_path / "style.safetensors"
    assert cli.main(["export", str(tmp_path / "whole"), "--format", "lora", "--out", str(file)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["tensors"] == 2 * 10
    found = lora.read(file, facts["dit"])["dit"]
    assert found.keys() == learned.keys() and all((found[path] == learned[path]).all() for path in found)
    export(tmp_path / "whole", tmp_path / "model")
    before, merged, added = (flat(model.params["dit"]) for model in
                             (load(base), load(tmp_path / "model"), load(base, lora=file)))  # fmt: skip
    for path, value in merged.items():
        np.testing.assert_allclose(value, added[path], atol=1e-6)
    assert {path for path in merged if (merged[path] != before[path]).any()} == {lora.ours_of(path) for path in learned}
    with pytest.raises(InputError, match=r"give a name that ends in .safetensors"):
        lora.export(tmp_path / "whole", tmp_path / "style")


def test_gradients_flow_to_both_matrices():
    """With a B of zero only B has a gradient; once it has moved, A has one too, and the loss has seen it."""
    task = tasks.make(config())
    params, (batch, _) = drawn(task), next(batches(None))
    base, params = {part: params[part] for part in task.frozen}, {"lora": params["lora"]}
    grad = jax.jit(jax.value_and_grad(lambda p: task.loss({**base, **p}, batch, jax.random.key(1))[0]))
    loss, gradient = grad(params)
    sizes = {path: float(jnp.abs(x).max()) for path, x in flat(gradient["lora"]).items()}
    assert len(sizes) == 20 and all((size > 0) == path.endswith("lora_b") for path, size in sizes.items())
    moved, gradient = grad(jax.tree.map(lambda x, g: x - 0.1 * jnp.sign(g), params, gradient))
    assert moved != loss and all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(gradient))


def test_a_folder_of_two_files_is_not_guessed_at(tmp_path):
    for name in "ab":
        lora.write(tmp_path / f"{name}.safetensors", a_lora(), FIELDS)
    with pytest.raises(InputError, match="holds 2 files"):
        lora.read(tmp_path, FIELDS)
