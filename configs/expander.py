"""The expander: short captions to long ones, words to words, on pairs that the embedded world writes as it goes.

    sora-jax train --config configs/expander.py:tiny --workdir runs/expander
    sora-jax export runs/expander --out runs/expander-model
    sora-jax expand "a red circle moves left" --expander runs/expander-model

Variants:
    tiny   the bundled one's: 1.3M parameters.
    smoke  20 steps in seconds, a checkpoint every 5.

The log's eval/kept is the share of held-out scenes' short captions whose greedy expansion passes the check of
`sora-jax expand`, eval/objects the share that names the scene's objects and no others. samples/ has texts.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "tiny") -> ConfigDict:
    """The config of a variant; locked, so that an unknown key is an error."""
    c = ConfigDict()
    c.task = "expander"
    c.seed = 0
    c.init = ""  # a model folder to begin with, to train it further
    c.steps = 1500
    c.ema = 0.99
    c.save_every = 100
    c.keep = 2
    c.log_every = 25
    c.eval_every = 250
    c.picture_every = 500
    c.profile = 0
    # see pod/mesh.py; -1: as many as there are devices
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "context": 1, "ring": 1, "tensor": 1})

    c.tokenizer = "tiny"  # the bundled model's, of the world's words

    c.expander = ConfigDict()
    c.expander.width = 128
    c.expander.depth = 2
    c.expander.text_depth = 1
    c.expander.tell_depth = 2
    c.expander.heads = 4
    c.expander.mlp = 384
    c.expander.vocab = 1024
    c.expander.dtype = "float32"

    # the most tokens of a prompt and of its expansion; top_p: the share of likeliest words that one is drawn from
    c.expand = ConfigDict({"prompt": 64, "tokens": 96, "top_p": 0.9})

    c.data = ConfigDict()
    c.data.frames = 9
    c.data.images = 0.2  # the share of scenes without motion: a prompt may tell of none
    c.data.row = 96  # tokens of short captions in a row
    c.data.rows = 8
    c.data.text_row = 256  # tokens of long captions in a row
    c.data.segments = 8  # pairs in a row, at most
    c.data.text_tokens = 96
    c.data.open_rows = 8
    c.data.lookahead = 0
    c.data.drop = 0.0
    c.data.captions = ConfigDict({"long": 1.0})
    c.data.text_dropout = 0.0

    c.opt = ConfigDict()
    c.opt.name = "muon"
    c.opt.lr = 3e-3
    c.opt.adam_lr = 3e-3
    c.opt.b1 = 0.9
    c.opt.b2 = 0.98
    c.opt.weight_decay = 0.01
    c.opt.warmup = 50
    c.opt.schedule = "linear"
    c.opt.clip = 1.0
    c.opt.accumulate = 1

    if variant == "smoke":
        c.steps = 20
        c.save_every = 5
        c.log_every = 5
        c.eval_every = 20
        c.picture_every = 20
        c.expander.update(width=48, depth=1, text_depth=1, tell_depth=1, heads=2, mlp=96)
        c.expand.update(prompt=32, tokens=24)
        c.data.update(rows=1)
        c.opt.warmup = 5
    elif variant != "tiny":
        raise ValueError(f"configs/expander.py has no variant {variant!r}; choose tiny or smoke")
    return c.lock()
