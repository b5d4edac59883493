"""The planner with libtpu's compiler: what it says of steps for chips that are not here. Minutes, where libtpu is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sora_jax.pod import chips, hlo, plan, roofline
from sora_jax.train import configs

pytestmark = pytest.mark.slow

SMALL = ["dit.width=512", "dit.heads=4", "dit.depth=3", "dit.mlp=2048"]
SMALL += ["text.depth=1", "text.width=128", "text.heads=2", "text.vocab=2048"]


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    """libtpu that does not look for a TPU, as `sora-jax plan` has it."""
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    pytest.importorskip("libtpu")


def config(*settings: str):
    return configs.read("configs/dit.py:wan-1.3b", [*SMALL, *settings])


def test_the_very_step_compiles_for_chips_that_are_not_here():
    """No parameter travels in float32, nothing large is ever whole on a device, heads travel as often as they must."""
    facts = plan.plan(config("mesh.fsdp=4", "mesh.context=2", "data.row=4096", "data.rows=4"), "v5p:2x2x2", tokens=1e9)
    assert facts["fits"] and not facts["loops_of_unknown_length"]
    assert 0.95 < facts["copies_of_work"] < 1.1

    def sent(kind: str, dtype: str) -> float:
        return sum(c["bytes"] for c in facts["collectives"] if (c["kind"], c["dtype"]) == (kind, dtype))

    # in float32 go noise levels, words and the maps at the ends, which compute in it; weights would be twice the other
    assert sent("all-gather", "f32") < sent("all-gather", "bf16") / 10
    assert sent("all-to-all", "bf16") == pytest.approx(facts["bytes_least"]["heads"], rel=1e-3)
    assert 0 < facts["mfu_bound"]["serial"] < facts["mfu_bound"]["overlapped"] <= 1


def test_a_search_finds_the_longest_row_of_a_sampling_step():
    """Beyond 180,224 patches on a device attention's schedule is full, whatever the memory."""
    found = plan.search(
        config("mesh.fsdp=1", "mesh.context=4", "data.row=262144", "data.rows=1"), "v5p:2x2x1", task="sample"
    )
    assert [each["row"] for each in found] == [131072] and found[0]["total"] > 0


def test_a_chunk_of_video_is_decoded_in_columns():
    settings = ["vae.width=16", "mesh.fsdp=4"]
    facts = plan.plan(configs.read("configs/vae.py:wan", settings), "v5p:2x2x1", task="vae-decode", size=(640, 384))
    assert facts["fits"] and facts["tokens_per_second"]["serial"] > 0


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_what_crosses_slices_is_read_from_what_compilers_write(topology):
    """Four slices in two pairs: sums, gathers and swaps within a pair and over all, on devices in another order."""
    chip, shape = chips.topology(topology)
    at = np.array(sorted(plan.devices(chip, shape, 4), key=lambda d: (d.slice_index, -d.id)))
    mesh = Mesh(at.reshape(2, 2, -1), ("far", "near", "within"))
    share = 64 * 64 * 256 * 4 / mesh.shape["within"]  # bytes of a device that holds all but what it shares within

    def sent(function, given: P, wanted: P) -> tuple[float, tuple[str, ...]]:
        given, wanted = NamedSharding(mesh, given), NamedSharding(mesh, wanted)
        x = jax.ShapeDtypeStruct((64, 64, 256), jnp.float32, sharding=given)
        text = jax.jit(function, out_shardings=wanted).lower(x).compile().as_text()
        (found,) = hlo.read(text, [device.id for device in at])[1]
        ici, dcn = roofline.split(mesh, found)
        assert ici == 0
        return dcn, hlo.axes_of(found.group, dict(mesh.shape))

    for axes in (("near",), ("far",), ("far", "near")):
        k = 2 ** len(axes)
        summed = sent(lambda x: x.sum(0), P(axes, "within"), P("within"))
        assert summed == (2 * share / 64 * (k - 1) / k, axes)
        assert sent(lambda x: x, P(axes, "within"), P(None, "within")) == (share * (k - 1) / k, axes)
        assert sent(lambda x: x, P(axes, None, "within"), P(None, axes, "within")) == (share / k * (k - 1) / k, axes)
