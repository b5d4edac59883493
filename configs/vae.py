"""The causal spacetime VAE.

    sora-jax train --config configs/vae.py:tiny --workdir runs/vae

Variants:
    tiny      the bundled model's: 4x8x8, 48 channels, 2.9M parameters, on the embedded world; 5 minutes on 2 cores.
    mend      what the tiny one's decoder blurs and its transformer paints amiss, mended by a network of 0.2M parameters
              behind the decoder; half an hour. Latents, and the transformer, stay what they are:
                  sora-jax train --config configs/vae.py:mend --workdir runs/mend --config.init=runs/tiny/tiny-model
                  sora-jax export runs/mend --out runs/mended
    speedrun  the same as tiny for `make train`: 2 minutes.
    smoke     20 steps in about a minute, a checkpoint every 5: does everything run, does a killed run resume?
    wan       the shape of Wan 2.1's VAE (arXiv:2503.20314), for real footage on accelerators: 4x8x8, 16 channels.
    wan-2.2   the shape of Wan 2.2's: 4x16x16, 48 channels, 704,688,668 parameters (2.1: 126,892,531).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "tiny") -> ConfigDict:
    """The config of a variant; locked, so that an unknown key is an error."""
    c = ConfigDict()
    c.task = "vae"
    c.seed = 0
    c.init = ""  # a model folder to begin with, to train it further
    c.frozen = ()  # parts that stay those of init: see train/vae_task.py
    c.steps = 300
    c.ema = 0.998
    c.save_every = 50
    c.keep = 2
    c.log_every = 25
    c.eval_every = 100
    c.picture_every = 300
    c.profile = 0
    # see pod/mesh.py; -1: as many as there are devices
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "context": 1, "ring": 1, "tensor": 1})

    c.vae = ConfigDict()
    c.vae.width = 32
    c.vae.multipliers = (1, 2, 2)
    c.vae.blocks = 1
    c.vae.time = (2, 2)
    c.vae.space = (2, 1)
    c.vae.patch = 4
    c.vae.channels = 48
    c.vae.linear_skip = True
    c.vae.dtype = "float32"

    c.loss = ConfigDict({"l1": 1.0, "l2": 0.0, "kl": 1e-4, "lpips": 0.0, "lpips_frames": 1, "repaint": 0.0})

    c.data = ConfigDict()
    c.data.source = "world"  # or the folder of a dataset made by `sora-jax data build`
    c.data.crops = ((4, 17, 64, 64), (8, 1, 96, 96))  # (rows, frames, height, width), in turn

    c.opt = ConfigDict()
    c.opt.name = "adamw"
    c.opt.lr = 2e-4
    c.opt.adam_lr = 2e-4
    c.opt.b1 = 0.9
    c.opt.b2 = 0.99
    c.opt.weight_decay = 0.0
    c.opt.warmup = 50
    c.opt.schedule = "linear"
    c.opt.clip = 1.0
    c.opt.accumulate = 1

    if variant == "speedrun":
        c.steps = 100
        c.picture_every = 100
    elif variant == "mend":
        c.init = "runs/model"
        c.frozen = ("encoder", "decoder")
        c.steps = 1200
        c.save_every = 250
        c.eval_every = 250
        c.picture_every = 1000
        c.vae.mend = 48
        # squared: most of a picture is flat and right already, and l1 punishes whatever moves there at once
        c.loss.update(l1=0.0, l2=10.0, kl=0.0, repaint=0.65)
        c.data.crops = ((8, 17, 64, 64), (8, 1, 64, 64))
        c.opt.update(lr=7e-4, warmup=100, schedule="cosine")
    elif variant == "smoke":
        c.steps = 20
        c.save_every = 5
        c.log_every = 5
        c.eval_every = 20
        c.picture_every = 20
        c.vae.width = 8
        c.data.crops = ((2, 5, 32, 32), (4, 1, 32, 32))
        c.opt.warmup = 5
    elif variant in ("wan", "wan-2.2"):
        c.steps = 200_000
        c.ema = 0.9999
        c.save_every = 1000
        c.vae = ConfigDict()
        c.vae.width = 96
        c.vae.multipliers = (1, 2, 4, 4)
        c.vae.blocks = 2
        c.vae.time = (1, 2, 2)
        c.vae.space = (2, 2, 2)
        c.vae.patch = 1
        c.vae.channels = 16
        c.vae.linear_skip = False
        c.vae.dtype = "bfloat16"
        c.vae.decoder_width = 0  # as the encoder's
        c.vae.shortcuts = False
        if variant == "wan-2.2":
            c.vae.width = 160
            c.vae.decoder_width = 256
            c.vae.patch = 2
            c.vae.channels = 48
            c.vae.shortcuts = True
        c.loss.kl = 1e-6
        c.loss.lpips = 0.5
        c.loss.lpips_frames = 4
        c.data.crops = ((8, 17, 256, 256), (64, 1, 256, 256))
        c.opt.name = "adamw"
        c.opt.lr = 1e-4
        c.opt.warmup = 1000
    elif variant != "tiny":
        raise ValueError(
            f"configs/vae.py has no variant {variant!r}; choose tiny, mend, speedrun, smoke, wan or wan-2.2"
        )
    return c.lock()
