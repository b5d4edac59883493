"""The diffusion transformer, with its text encoder, on packed latents.

    bash launch/tiny.sh runs/tiny

makes the bundled model from nothing: VAE, tokenizer, latents, and the trainings of `one`, `short`, `small`,
`pairs`, `tiny` and `clips`, each from the model before. With a VAE and a tokenizer, `tiny` by itself is

    world="sora-jax data latents world --model runs/vae-model --max-pixels 4096"
    $world --clips 5500 --out runs/latents
    $world --clips 120 --seed 100000000 --out runs/held-out
    sora-jax train --config configs/dit.py:tiny --workdir runs/dit

Expect the figures of sora_jax/assets/tiny/README.md; the six trainings take five hours of two cores.

Variants:
    tiny      the bundled model's: 2.0M parameters, mixed native sizes of the embedded world, rows of 576 patches, all
              rates to zero.
    one       what it begins with: small images of one object, at the noise at which its shape and place are decided.
              The attention of short rows is cheap, and there is nothing else to learn: after 3,000 steps of 38 images
              half of the shapes are as told (tests/benchmarks/bench_levels.py).
    short     what it goes on with: images of all kinds and clips of at most 216 patches, half as many again a
              second as in rows of 576.
    small     then images and clips of one object that are small enough for rows of 128: shape, and now motion too, at
              the noise at which they are decided.
    pairs     and as small ones of two and three objects, which teach whose shape and whose motion a word tells.
    clips     at last as tiny once more, mostly clips, at the sizes and lengths at which they are painted.
    images    images alone, for the sweeps (configs/sweeps/).
    speedrun  clips of up to 9 frames (`--max-frames 9`), 400 steps, for `make train`.
    smoke     20 steps in about a minute from the embedded world alone, a checkpoint every 5.
    wan-1.3b, wan-14b, wan-5b, wan-a14b, wan-a14b-i2v
              the transformers of Wan 2.1 and 2.2 (weights/published.py; of a14b one of its two) and a text encoder of
              T5's base size, for pods: their VAE's latents and a tokenizer are yours to make. `sora-jax plan` says what
              they cost before they run.

With ",lora=16" behind a variant (tiny,lora=8, wan-1.3b,lora=16) a LoRA of that rank is trained: the weights of
--config.init (tiny: the bundled model) stand still, and optimizer, average and checkpoints hold the LoRA alone.

    sora-jax train --config configs/dit.py:tiny,lora=8 --workdir runs/style
    sora-jax export runs/style --format lora --out style.safetensors       # PEFT's keys; without --format: all, merged
    sora-jax generate "a red star" --model tiny --lora style.safetensors=0.8 --out star.mp4

With ",tune" behind a variant of Wan an imported model is trained further at native sizes, its text encoder standing
still, so that one that has learned to go on from a first frame learns to extend, loop and connect:

    sora-jax import wan Wan2.2-TI2V-5B --out wan-5b
    sora-jax data build my_clips --out runs/clips
    sora-jax data latents runs/clips --model wan-5b --out runs/latents
    sora-jax train --config configs/dit.py:wan-5b,tune --workdir runs/tune --config.init=wan-5b \\
        --config.vae_model=wan-5b --config.tokenizer=wan-5b
    sora-jax export runs/tune --out tuned
    sora-jax export tuned --format diffusers --out for-diffusers

The same three settings name the model of wan-5b,lora=16. Of wan-a14b and wan-a14b-i2v, which are two transformers each,
one is trained at a time: --config.expert=low after the "high" that stands here, each from a model that holds both.
The latents of wan-a14b-i2v hold what it is given of each clip as well: `data latents --model` must name it.
"""

from ml_collections import ConfigDict

from sora_jax.weights import published


def get_config(variant: str = "tiny") -> ConfigDict:
    """The config of a variant; locked, so that an unknown key is an error."""
    variant, *options = variant.split(",")
    c = ConfigDict()
    c.task = "dit"
    c.seed = 0
    c.init = ""  # a model folder to begin with, to train it further
    c.frozen = ()  # parts of it that are not trained: ("text",), say
    c.expert = ""  # of two transformers the one that is trained: "high" or "low" noise
    c.lora = ConfigDict({"rank": 0})  # above 0: of a LoRA, which alone is trained
    c.steps = 3200
    c.ema = 0.997
    c.save_every = 100
    c.keep = 2
    c.log_every = 25
    c.eval_every = 250
    c.picture_every = 1500
    c.profile = 0
    # see pod/mesh.py; -1: as many as there are devices
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "context": 1, "ring": 1, "tensor": 1})

    c.vae_model = "runs/vae-model"  # the folder whose VAE made the latents
    c.tokenizer = "runs/tokenizer.model"

    c.text = ConfigDict()
    c.text.vocab = 1024
    c.text.width = 128
    c.text.depth = 2
    c.text.heads = 4
    c.text.head_width = 32
    c.text.mlp = 256
    c.text.buckets = 32
    c.text.max_distance = 128
    c.text.bias_every_layer = True
    c.text.dtype = "float32"

    c.dit = ConfigDict()
    c.dit.width = 128
    c.dit.depth = 6
    c.dit.heads = 4
    c.dit.mlp = 512
    c.dit.channels = 48
    c.dit.patch = (1, 1, 1)
    c.dit.gated = True  # images learn faster, held out 0.47 after 100 steps instead of 0.61: sweeps/gate.py
    # at noise 0.9, 200 steps of images of one object, held out 0.481 instead of 0.497: sweeps/absolute.py
    c.dit.absolute = True
    c.dit.stem = 256  # an object is two or three patches wide
    c.dit.remat = False
    c.dit.keep = "nothing"  # of what remat would recompute: see models/dit.py
    c.dit.unroll = 6  # its layers one behind the other: a quarter faster on a CPU
    c.dit.dtype = "float32"

    c.flow = ConfigDict()
    # or eps, velocity, or x0, Sora's "clean patches", which v is at high noise; at low noise x0 would have to be copied
    # through a network as narrow as this
    c.flow.predict = "v"
    c.flow.law = "uniform"  # or logit_normal, mode, cosine
    c.flow.shift_base = 3.0  # tokens at which the noise shift is 1; 0 for no shift
    c.flow.floor = 0.5  # noise level below which errors count as x0's

    # what a training clip knows of itself: see diffusion/canvas.py
    c.masks = ConfigDict({"none": 0.7, "first": 0.1, "last": 0.04, "ends": 0.06, "frames": 0.04, "box": 0.06})

    c.data = ConfigDict()
    c.data.path = "runs/latents"
    c.data.held_out = "runs/held-out"
    c.data.row = 576  # patches in a row
    c.data.rows = 4
    c.data.text_row = 384  # text tokens in a row
    c.data.segments = 16  # clips in a row, at most
    c.data.text_tokens = 96
    c.data.open_rows = 8
    c.data.lookahead = 0  # costs are balanced among devices: one has nothing to balance
    c.data.drop = 0.0
    c.data.captions = ConfigDict({"short": 0.5, "long": 0.5})
    c.data.text_dropout = 0.1

    c.sample = ConfigDict(
        {"row": 576, "text_row": 288, "steps": 30, "guidance": 2.5, "solver": "dpm2m", "fps": 8.0, "frames": 33}
    )
    c.prompts = (
        ("a red circle moves right", (96, 64), 17),
        ("a blue star falls and bounces", (64, 96), 17),
        ("a small green square moves up", (64, 64), 9),
        ("a yellow triangle and a purple cross", (64, 64), 1),
    )

    c.opt = ConfigDict()
    c.opt.name = "muon"
    # at three times both rates the loss falls faster (images, 150 steps, held out: 0.47, not 0.55), but what is told is
    # heard ever less: text_out's features shrank to a quarter in 2,500 steps, told colours from 87 % of objects to 46 %
    c.opt.lr = 4e-3
    c.opt.adam_lr = 1.3e-3
    c.opt.b1 = 0.9
    c.opt.b2 = 0.98
    c.opt.weight_decay = 0.01
    c.opt.warmup = 50
    c.opt.schedule = "cosine"  # or linear, over the last fifth, constant; what is learned shows when rates fall
    c.opt.clip = 1.0
    c.opt.accumulate = 1

    if variant == "one":
        c.steps = 3000
        c.opt.schedule = "constant"
        c.flow.update(law="logit_normal", shift_base=1.78)  # half of 64 patches' noise between 0.75 and 0.92
        c.data.path = "runs/one"
        c.data.held_out = "runs/held-out-one"
        c.data.row = 128  # attention's price grows with it
        c.data.rows = 16
        c.data.text_row = 80
        c.data.segments = 8
        c.data.text_tokens = 64
        c.masks.update(none=0.95, box=0.05, first=0.0, last=0.0, ends=0.0, frames=0.0)
    elif variant == "short":
        c.steps = 4100
        c.opt.schedule = "constant"
        c.flow.law = "logit_normal"
        c.data.path = "runs/images,runs/short,runs/slow"
        c.data.row = 216
        c.data.rows = 10
        c.data.text_row = 144
        c.data.segments = 10
    elif variant in ("small", "pairs"):
        c.steps = {"small": 3500, "pairs": 5500}[variant]
        c.opt.schedule = "constant"
        c.flow.update(law="logit_normal", shift_base=1.78)
        images = {"small": "runs/one", "pairs": "runs/two,runs/three,runs/pair-clips"}[variant]
        c.data.path = f"{images},runs/small-clips,runs/small-slow"
        c.data.held_out = {"small": "runs/held-out-small", "pairs": "runs/held-out-pairs"}[variant]
        c.data.row = 128
        c.data.rows = 16
        c.data.text_row = 128
        c.data.segments = 8
        c.masks.update(none=0.9, first=0.04, last=0.0, ends=0.02, frames=0.0, box=0.04)
    elif variant == "clips":
        c.steps = 4800
        c.data.path = "runs/clips-long,runs/clips-one,runs/clips-images"
        c.sample.guidance = 3.5  # of 200 prompts 0.45 of the told directions are right, at 2.5 0.41
    elif variant == "images":
        c.steps = 4500
        c.data.path = "runs/images"
        c.data.row = 216
        c.data.rows = 8
        c.data.text_row = 144
        c.data.segments = 8
        c.masks.update(none=0.95, box=0.05, first=0.0, last=0.0, ends=0.0, frames=0.0)
        as_measured(c)
    elif variant == "speedrun":
        c.steps = 400
        c.data.row = 768
        c.data.rows = 2
        c.data.text_row = 288
        as_measured(c)
    elif variant == "smoke":
        c.steps = 20
        c.save_every = 5
        c.log_every = 5
        c.eval_every = 20
        c.picture_every = 20
        c.vae_model = "tiny"
        c.tokenizer = "tiny"
        c.data.path = "world"
        c.data.held_out = "world-held-out"
        c.data.row = 432
        c.data.rows = 2
        c.data.text_row = 288
        c.dit.width = 64
        c.dit.heads = 2
        c.dit.depth = 2
        c.dit.mlp = 128
        c.dit.stem = 128
        c.dit.unroll = 1
        c.prompts = c.prompts[:1]
        c.opt.warmup = 5
    elif variant in published.MODELS:
        wan(c, published.MODELS[variant])
    elif variant != "tiny":
        known = ", ".join(
            ("tiny", "one", "short", "small", "pairs", "clips", "images", "speedrun", "smoke", *published.MODELS)
        )
        raise ValueError(f"configs/dit.py has no variant {variant!r}; choose one of {known}")
    for option in options:
        name, _, value = option.partition("=")
        if name == "lora" and value.isdecimal() and int(value):
            c.lora.rank = int(value)
            c.steps = 1000
            c.opt.update(name="adamw", lr=2e-4 if variant in published.MODELS else 2e-3)
        elif option != "tune" or variant not in published.MODELS:
            raise ValueError(f"configs/dit.py:{variant} has no option {option!r}: lora=RANK or, of Wan, tune")
    if options and variant in published.MODELS:
        further(c, published.MODELS[variant])
    elif options:
        c.init = c.vae_model = c.tokenizer = "tiny"
    return c.lock()


def as_measured(c: ConfigDict) -> None:
    """Noise and rates as they were when the sweeps, and `make train`, were measured."""
    c.ema = 0.998
    c.flow.update(law="uniform", shift_base=8.0)
    c.opt.update(lr=3e-3, adam_lr=1e-3, schedule="linear")


def further(c: ConfigDict, model: published.Published) -> None:
    """What an imported model asks of those who train it further: its text encoder, its noise shift, no surprise."""
    c.frozen = ("text",)
    c.text.update(published.TEXT)
    c.flow.update(shift=model.shift, timesteps=1000)
    c.ema = 0.999
    c.save_every = 100
    c.data.text_row = c.data.segments * c.data.text_tokens  # its texts are rows of that length, filled up with zeros
    c.sample.update(
        row=4096, text_row=c.data.text_tokens, steps=model.steps, guidance=model.guidance[0], solver="unipc"
    )
    if model.switch:
        c.expert = "high"
        c.sample.switch = model.switch
    c.opt.update(lr=c.opt.lr if c.lora.rank else 1e-5, warmup=100)


def wan(c: ConfigDict, model: published.Published) -> None:
    """A pod's training of a published transformer on long rows, one a group of devices that share it."""
    row = 131_072 if model.dit["width"] > 4096 else 65_536
    c.steps = 100_000
    c.ema = 0.9999
    c.save_every = 500
    c.eval_every = c.picture_every = 5000
    c.tokenizer = "tiny"  # a stand-in: any of at most text.vocab pieces
    c.text.update(vocab=32128, width=768, depth=12, heads=12, head_width=64, mlp=2048, dtype="bfloat16")  # T5 1.1 base
    c.dit.update(**model.dit, gated=False, absolute=False, stem=0, patch=(1, 2, 2))
    c.dit.update(unroll=1, remat=True, dtype="bfloat16")
    c.dit.keep = "heads"  # costs memory, saves a sixth of the work and of what devices send
    c.flow.predict = "velocity"
    c.flow.law = "logit_normal"
    c.flow.shift_base = 1024.0
    c.flow.floor = 1e-3
    c.data.update(row=row, rows=64, text_row=1024, segments=16, text_tokens=512, open_rows=64, lookahead=64)
    # 95% of a captioner's, 5% of what clips came with: DALL-E 3's shares (Betker et al. 2023); long ones, as Sora's
    c.data.captions = ConfigDict({"short": 0.2, "long": 0.75, "original": 0.05})
    c.sample.update(row=row, text_row=1024, fps=model.fps, frames=model.frames)
    c.opt.update(name="adamw", lr=1e-4, b2=0.95, warmup=1000, schedule="constant")
