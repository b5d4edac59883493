"""Laws of painting: known patches come back bit for bit, one program for any size, solvers exact where they must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sora_jax
from sora_jax.data.packing import positions
from sora_jax.diffusion import canvas, flow, requests, sampler, solvers
from sora_jax.diffusion.canvas import Canvas
from sora_jax.errors import InputError
from sora_jax.pod import mesh as pod


class Exact:
    """In the place of a network: the velocity of the straight line to a known x0, which any solver must follow."""

    patch = (1, 2, 2)
    width, heads, mlp, channels, given = 8, 1, 8, 4, 0

    def __init__(self, x0: float):
        self.x0 = x0

    def apply(self, variables, x, pos, seg, t, level, ctx, txt_seg, ask):
        t_patch = jnp.take_along_axis(t, level, 1)[..., None]
        return (x - self.x0) / jnp.maximum(t_patch, 1e-9)


class NoText:
    def apply(self, variables, txt, txt_seg):
        return jnp.zeros((*txt.shape, 4))


class Words:
    def encode(self, text: str) -> list[int]:
        return [*map(ord, text), 1]


class Painter:
    """The parts of a Model that `sampler.paint` asks for."""

    def __init__(self, x0: float, shift_base: float = 0.0):
        self.dit, self.text, self.tokenizer = Exact(x0), NoText(), Words()
        self.params = {"dit": {}, "text": {}}
        self.config = {"sample": {"row": 64, "text_row": 64}, "flow": {"predict": "velocity", "shift_base": shift_base}}


def settings(**changes) -> dict:
    return {"seed": 0, "steps": 4, "guidance": 1.0, "solver": "euler", **changes}


@pytest.mark.parametrize("solver", solvers.SOLVERS)
@pytest.mark.parametrize("shift_base", [0.0, 4.0])
def test_straight_lines_are_followed_exactly_whatever_the_steps(solver, shift_base):
    painter = Painter(0.7, shift_base)
    for steps in (1, 5):
        (z,) = sampler.paint(painter, [canvas.blank((2, 4, 6), 4)], ["a"], **settings(steps=steps, solver=solver))
        np.testing.assert_allclose(z, 0.7, atol=2e-5)


@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_known_latents_come_back_bit_for_bit(solver):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((3, 5, 7, 4)).astype(np.float32)  # odd sides: painted on the grid above
    start = rng.choice([0.0, 0.4, 1.0], (3, 5, 7)).astype(np.float32)
    (out,) = sampler.paint(Painter(0.1), [Canvas(z, start)], [""], **settings(solver=solver, guidance=3.0))
    assert out.shape == z.shape
    assert (out[start == 0] == z[start == 0]).all()
    assert (out[start == 1] != z[start == 1]).all()


def test_any_two_sizes_are_one_compilation():
    painter = Painter(0.0)
    before = sampler.denoise._cache_size()
    for grid in ((1, 4, 4), (3, 2, 6), (5, 3, 3)):
        sampler.paint(painter, [canvas.blank(grid, 4)], ["x"], **settings(steps=3))
    sampler.paint(painter, [canvas.blank((1, 4, 4), 4), canvas.blank((2, 3, 5), 4)], ["x", "y"], **settings(steps=3))
    assert sampler.denoise._cache_size() == before + 1


def test_the_cache_looks_while_there_is_news_and_never_without():
    """A network that always says the same is asked twice; one whose x0 follows the noise is asked as expected."""

    class Counting(Exact):
        looks = 0

        def count(self):
            self.looks += 1

        def apply(self, variables, x, pos, seg, t, level, *rest):
            jax.debug.callback(self.count)
            moving = self.x0 * (1 + self.speed * (1 - t.max()))  # changes by about speed / steps of its size a step
            return (x - moving) / jnp.maximum(jnp.take_along_axis(t, level, 1)[..., None], 1e-9)

        speed = 0.0

    def looks(cache: float, speed: float) -> int:
        painter = Painter(0.0)
        painter.dit = Counting(0.5)
        painter.dit.speed = speed
        (z,) = sampler.paint(painter, [canvas.blank((2, 4, 6), 4)], ["a"], cache=cache, **settings(steps=20))
        jax.effects_barrier()
        np.testing.assert_allclose(z, 0.5 * (1 + speed * 0.95), rtol=0.05)
        return painter.dit.looks

    assert looks(0.0, 0.0) == looks(0.0, 1.0) == 20
    assert looks(0.01, 0.0) == 2
    assert looks(0.01, 1.0) == 20 and 2 < looks(0.1, 1.0) < 15


@pytest.mark.parametrize("solver", ["euler", "renoise"])
def test_noise_does_not_depend_on_neighbours(solver):
    class Still(Exact):
        def apply(self, variables, x, *rest):
            return 0 * x

    painter = Painter(0.0)
    painter.dit = Still(0.0)
    grids = [(1, 4, 4), (2, 6, 4), (1, 2, 2)]
    together = sampler.paint(painter, [canvas.blank(g, 4) for g in grids], ["a", "b", "c"], **settings(solver=solver))
    alone = sampler.paint(painter, [canvas.blank(grids[0], 4)], ["a"], **settings(solver=solver))
    assert (together[0] == alone[0]).all()
    again = sampler.paint(painter, [canvas.blank(g, 4) for g in grids], ["a", "b", "c"], **settings(solver=solver))
    assert all((a == b).all() for a, b in zip(together, again))


def test_every_step_and_patch_has_noise_of_its_own():
    eps = jax.random.normal(jax.random.key(0), (1, 500, 16))
    one, other = solvers.fresh(eps, 1), solvers.fresh(eps, 2)
    assert (solvers.fresh(eps, 1) == one).all()
    columns = np.concatenate([x[0].T for x in (eps, one, other)])  # 48 times 500 draws
    np.testing.assert_allclose(np.cov(columns), np.eye(48), atol=0.3)
    patches = np.corrcoef(np.concatenate([x[0, :20] for x in (eps, one, other)], 1))
    assert np.abs(patches - np.eye(20)).max() < 0.6


def test_rows_hold_every_canvas_once_and_overflow_into_longer_rows(capsys):
    assert requests.arrange([10, 50, 20, 64, 30], [1] * 5, 64, 64) == [[0, 1], [2, 4], [3]]
    assert requests.arrange([10, 10, 10], [5, 5, 5], 64, 12) == [[0, 1], [2]]
    sampler.paint(Painter(0.0), [canvas.blank((9, 8, 8), 4)], [""], **settings())
    assert "row of 192" in capsys.readouterr().err


def test_mistakes_have_a_sentence():
    with pytest.raises(InputError, match="dpm2m"):
        sampler.paint(Painter(0.0), [canvas.blank((1, 2, 2), 4)], [""], **settings(solver="heun"))
    with pytest.raises(InputError, match="at least 1"):
        sampler.paint(Painter(0.0), [canvas.blank((1, 2, 2), 4)], [""], **settings(steps=0))
    with pytest.raises(InputError, match="too long"):
        sampler.paint(Painter(0.0), [canvas.blank((1, 2, 2), 4)], ["a" * 100], **settings())


def test_training_masks_know_what_their_name_says():
    grid = jnp.asarray([[[5, 2, 2], [1, 4, 4], [3, 2, 3], [0, 0, 0]]])
    pos = np.zeros((1, 60, 3), np.int32)
    seg = np.zeros((1, 60), np.int32)
    at = 0
    for i, g in enumerate(np.asarray(grid)[0, :3], 1):
        n = int(np.prod(g))
        pos[0, at : at + n], seg[0, at : at + n] = positions(tuple(g)), i
        at += n
    draw = jax.jit(canvas.training_mask, static_argnums=4)
    for name in canvas.MASKS:
        shares = tuple(float(name == other) for other in canvas.MASKS)
        for trial in range(8):
            known = np.asarray(draw(jax.random.key(trial), pos, seg, grid, shares))
            assert not known[seg == 0].any()
            for i in (1, 2, 3):
                inside, frame = known[seg == i], pos[seg == i][:, 0]
                assert not inside.all()  # something is always left to paint
                per_frame = np.array([inside[frame == f].mean() for f in range(frame.max() + 1)])
                if name == "none" or (i == 2 and name != "box"):
                    assert not inside.any()
                elif name == "first":
                    assert per_frame[0] == 1 and (np.diff(per_frame) <= 0).all()
                elif name == "last":
                    assert per_frame[-1] == 1 and (np.diff(per_frame) >= 0).all()
                elif name == "ends":
                    assert per_frame[0] == 1 and per_frame[-1] == 1
                elif name == "frames":
                    assert set(per_frame) <= {0.0, 1.0}


def test_noise_shift_depends_on_tokens():
    assert float(flow.shift_of(jnp.asarray(160), 40.0)) == 2.0


def test_a_mesh_paints_what_one_device_paints():
    """Law 6: weights cut over eight devices, rows over four, which the prompts' two sides share."""
    canvases, prompts = [canvas.blank((2, 6, 8), 48), canvas.blank((1, 4, 4), 48)], ["a red circle", "a blue star"]
    how = {"seed": 3, "steps": 3, "guidance": 2.0}
    model = sora_jax.load("tiny")
    alone = sampler.paint(model, canvases, prompts, **how)
    image = model.decode(alone[1]).frames.astype(int)
    with jax.set_mesh(pod.make({"data": 1, "fsdp": 2, "context": 4, "ring": 4, "tensor": 1})):
        model = sora_jax.load("tiny")
        kernel = model.params["dit"]["blocks"]["mlp_up"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // 8
        together = sampler.paint(model, canvases, prompts, **how)
        assert np.abs(model.decode(together[1]).frames - image).max() <= 1
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
