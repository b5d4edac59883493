"""The captioner: clips to sentences, on packed rows of pixels.

    sora-jax data tokenizer world --vocab 1024 --out runs/tokenizer.model
    sora-jax train --config configs/captioner.py:images --workdir runs/captioner-images
    sora-jax export runs/captioner-images --out runs/captioner-images-model
    sora-jax train --config configs/captioner.py:tiny --workdir runs/captioner --config.init=runs/captioner-images-model
    sora-jax export runs/captioner --out runs/captioner-model
    sora-jax evaluate captions --captioner runs/captioner-model

Variants:
    tiny    the bundled one's: 1.6M parameters, clips of the embedded world thinned to 9 frames.
    images  what it begins with: the world's scenes as images, a third of a clip's patches. At the end all colours,
            shapes, textures and counts of 64 held-out images are told right; 1.5 s a step on one core.
    short   both kinds at once, a few minutes on two cores: says colours, not yet much else.
    smoke   20 steps in about a minute, a checkpoint every 5.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "tiny") -> ConfigDict:
    """The config of a variant; locked, so that an unknown key is an error."""
    c = ConfigDict()
    c.task = "captioner"
    c.seed = 0
    c.init = ""  # a model folder to begin with, to train it further
    c.steps = 1700
    c.ema = 0.99
    c.save_every = 50
    c.keep = 2
    c.log_every = 25
    c.eval_every = 200
    c.picture_every = 1000
    c.profile = 0
    # see pod/mesh.py; -1: as many as there are devices
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "context": 1, "ring": 1, "tensor": 1})

    c.tokenizer = "tiny"  # the bundled model's, of the world's words

    c.captioner = ConfigDict()
    c.captioner.width = 128
    c.captioner.depth = 4
    c.captioner.text_depth = 1
    c.captioner.tell_depth = 2
    c.captioner.heads = 4
    c.captioner.mlp = 384
    c.captioner.embed = 64
    c.captioner.vocab = 1024
    c.captioner.patch = (3, 8, 8)
    c.captioner.dtype = "float32"

    c.describe = ConfigDict({"frames": 9, "max_pixels": 12288, "tokens": 64, "row": 1152, "rows": 2, "segments": 16})

    # contrast: its loss's weight beside the caption's; CoCa's is 1/2, but captions of a world are easily told apart
    c.loss = ConfigDict({"contrast": 0.2, "smooth": 0.0})

    c.data = ConfigDict()
    c.data.path = "world"  # or the folder of a dataset made by `sora-jax data build`
    c.data.held_out = "world-held-out"
    c.data.frames = 9
    c.data.max_pixels = 12288
    c.data.images = 0.2
    c.data.row = 1152  # patches in a row
    c.data.rows = 4
    c.data.text_row = 256  # text tokens in a row
    c.data.segments = 16  # clips in a row, at most
    c.data.text_tokens = 64
    c.data.open_rows = 8
    c.data.lookahead = 0
    c.data.drop = 0.0
    c.data.captions = ConfigDict({"short": 0.2, "long": 0.8})
    c.data.text_dropout = 0.0

    c.opt = ConfigDict()
    c.opt.name = "muon"
    c.opt.lr = 3e-3
    c.opt.adam_lr = 2e-3
    c.opt.b1 = 0.9
    c.opt.b2 = 0.98
    c.opt.weight_decay = 0.01
    c.opt.warmup = 50
    c.opt.schedule = "linear"
    c.opt.clip = 1.0
    c.opt.accumulate = 1

    if variant == "images":
        c.steps = 2100
        c.opt.schedule = "constant"
        c.data.images = 1.0
        c.data.row = 768
        c.data.text_row = 320
    elif variant == "short":
        c.steps = 300
        c.data.images = 0.5
    elif variant == "smoke":
        c.steps = 20
        c.save_every = 5
        c.log_every = 5
        c.eval_every = 20
        c.picture_every = 20
        c.captioner.update(width=48, depth=1, text_depth=1, tell_depth=1, heads=2, mlp=96, embed=16)
        c.describe.update(tokens=24)
        c.data.update(row=576, rows=1)
        c.opt.warmup = 5
    elif variant != "tiny":
        raise ValueError(f"configs/captioner.py has no variant {variant!r}; choose tiny, images, short or smoke")
    return c.lock()
