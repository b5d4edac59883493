"""A Model: text encoder, DiT and VAE in one folder on disk, and what one does with them.

model.json            the config: the fields of every module, and how to sample from it
vae.safetensors       parameters; a tensor's name is its path in the tree, joined by "/"
text.safetensors      (these two and the tokenizer are absent from a folder that holds a VAE alone)
dit.safetensors       (dit_low.safetensors beside it where a second transformer paints at low noise)
captioner.safetensors (alone with its tokenizer in a captioner's folder: see captioning.py)
expander.safetensors  (the same in an expander's: see expansion.py)
tokenizer.model
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from sora_jax import drafts, prompting
from sora_jax.diffusion import sampler
from sora_jax.errors import InputError, local
from sora_jax.media import Video
from sora_jax.models import vae_stream
from sora_jax.models.captioner import Captioner
from sora_jax.models.dit import DiT
from sora_jax.models.expander import Expander
from sora_jax.models.text import TextEncoder, Tokenizer
from sora_jax.models.vae import VAE
from sora_jax.models.vae_stream import stream_decode, stream_encode
from sora_jax.pod.mesh import placed
from sora_jax.weights import quant as bits

FORMAT = 1  # of model.json; raised when an older reader would misread a newer folder
BUNDLED = {name: Path(__file__).parent / "assets" / name for name in ("tiny", "captioner", "expander")}
DITS = ("dit", "dit_low")  # the transformer, and where there are two the one for low noise
SAMPLE = {"row", "text_row", "steps", "guidance", "solver", "fps", "frames"}  # what model.json says of painting
CHUNK = 4  # latent frames decoded (or encoded) at a time, after the first


@dataclass
class Model:
    """`config` holds vae, text, dit (fields of their modules), flow and sample; `params` a tree for each module.

    A Model with a VAE alone encodes and decodes; it has no tokenizer and does not generate.
    """

    config: dict
    params: dict
    tokenizer: Tokenizer | None = None
    tile: int | None = None  # see `decode`; where neither it nor `encode` are told

    @cached_property
    def vae(self) -> VAE:
        return VAE(**_hashable(self.config["vae"]))

    @cached_property
    def text(self) -> TextEncoder:
        return TextEncoder(**_hashable(self.config["text"]))

    @cached_property
    def dit(self) -> DiT:
        return DiT(**_hashable(self.config["dit"] | {"unroll": 1}))  # without a backward pass it only compiles longer

    @cached_property
    def captioner(self) -> Captioner:
        return Captioner(**_hashable(self.config["captioner"]))

    @cached_property
    def expander(self) -> Expander:
        return Expander(**_hashable(self.config["expander"]))

    @property
    def sample(self) -> dict:
        """How it paints unless told otherwise. Raises InputError when the model holds a VAE alone, or cannot paint."""
        if self.tokenizer is None or "dit" not in self.params:
            raise InputError("this model holds only a VAE, which cannot paint a prompt: export a DiT's workdir")
        return self.config["sample"]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Pixels to a latent along (frames, rows, columns); the first frame has a latent of its own."""
        return self.vae.grid

    def encode(self, video: Video, tile: int | None = None) -> Float[np.ndarray, "f h w c"]:
        """Normalised latents of a video, cropped to the grid: 1 + k*time frames from the start, sides about the centre.

        tile: see `decode`.
        Raises InputError when a side is shorter than one latent.
        """
        time, side, _ = self.grid
        f, h, w = video.frames.shape[:3]
        if min(h, w) < side:
            raise InputError(f"a video of {w}x{h} is too small to encode: each side needs {side} pixels or more")
        f, top, left = f - (f - 1) % time, h % side // 2, w % side // 2
        return self.encoded(video.frames[:f, top : top + h // side * side, left : left + w // side * side], tile)

    def encoded(self, x: Float[np.ndarray, "f h w 3"], tile: int | None = None) -> Float[np.ndarray, "f2 h2 w2 c"]:
        """Normalised latents of pixels from 0 to 255, whole numbers or not, whose sizes are the grid's."""
        f, time = len(x), self.grid[0]
        latents = 1 + (f - 1) // time
        starts = range(1, f, CHUNK * time)
        # The last chunk is filled up by repeating: causal layers never see it, and one length compiles once.
        chunks = [x[:1], *(_filled(x[i : i + CHUNK * time], CHUNK * time) for i in starts)]
        if tile := tile or self.tile:
            x = np.concatenate(chunks, dtype=np.float32)[None] / np.float32(127.5) - 1
            return vae_stream.tile_encode(self.vae, self.params["vae"], x, tile, CHUNK)[0, :latents]
        z = stream_encode(self.vae, self.params["vae"], (jnp.asarray(c[None], jnp.float32) / 127.5 - 1 for c in chunks))
        return np.concatenate([np.asarray(part[0], np.float32) for part in z])[:latents]

    def decode(self, z: Float[np.ndarray, "f h w c"], fps: float = 8.0, tile: int | None = None) -> Video:
        """The video of normalised latents, in memory that grows only by the pixels themselves.

        tile: the side in latents of tiles that are decoded one after the other (`models.vae_stream`), for frames whose
        pieces do not fit memory: the same pixels for more work.
        """
        (f, h, w, _), (time, side, _) = z.shape, self.grid
        filled = jnp.asarray(_filled(z, 1 + -(-(f - 1) // CHUNK) * CHUNK))[None]
        if tile := tile or self.tile:
            parts = vae_stream.tile_decode(self.vae, self.params["vae"], filled, tile, CHUNK)
        else:
            starts = (0, *range(1, filled.shape[1] * time, CHUNK * time))
            pieces = stream_decode(self.vae, self.params["vae"], filled, CHUNK)
            parts = ((slice(start, None), slice(None), slice(None), x) for start, x in zip(starts, pieces))
        pixels = np.empty((1 + (f - 1) * time, h * side, w * side, 3), np.uint8)
        for frames, rows, columns, part in parts:
            at = pixels[frames.start : frames.start + part.shape[1], rows, columns]
            at[:] = np.round(np.clip(np.asarray(part[0]) * 127.5 + 127.5, 0, 255))[: len(at)]
        return Video(pixels, fps)

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        size: tuple[int, int] | Sequence[tuple[int, int]] = (64, 64),
        frames: int | Sequence[int] | None = None,
        seconds: float | None = None,
        seed: int = 0,
        **how,
    ) -> Video | list[Video]:
        """Paints a prompt, or a list of them packed together, at exactly the size (width, height) and length asked for.

        Length is in `frames` or in `seconds`; 17 frames when neither is given, and 1 is an image. `size` and `frames`
        may be lists, one entry for each prompt. A clip longer than the model learned is painted in windows, each seeing
        the end of the one before (`drafts.stream` gives them one by one). The same seed gives the same bytes; the
        n-th of several prompts has the n-th noise of that seed. `how` is what `sampler.paint` takes: steps, solver,
        guidance, negative, cache, progress.
        Raises InputError for a size, length or prompt that cannot be painted.
        """
        sample = self.sample
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if np.ndim(frames) and seconds is not None:
            raise InputError("give the length in frames or in seconds, not in both")
        sizes = [size] * len(prompts) if np.ndim(size) == 1 else list(size)
        lengths = (
            [prompting.length_of(frames, seconds, sample["fps"], 17)] * len(prompts)
            if np.ndim(frames) == 0
            else list(frames)
        )
        if not prompts or not len(prompts) == len(sizes) == len(lengths):
            raise InputError(f"{len(prompts)} prompts, {len(sizes)} sizes and {len(lengths)} lengths do not match")
        for (w, h), f in zip(sizes, lengths):
            self.latents_of(w, h, f)  # refuses what has none
        sizes, lengths = [(int(w), int(h)) for w, h in sizes], [int(f) for f in lengths]
        fps = sample["fps"]
        if max(lengths) > drafts.reach(self)[0]:
            videos = [
                Video(np.concatenate(list(drafts.stream(self, p, size=s, frames=f, seed=seed, first=n, **how))), fps)
                for n, (p, s, f) in enumerate(zip(prompts, sizes, lengths))
            ]
            return videos[0] if isinstance(prompt, str) else videos
        canvases = [drafts.canvas_of(self, drafts.nothing(w, h, f)) for (w, h), f in zip(sizes, lengths)]
        painted = sampler.paint(self, canvases, prompts, seed=seed, **how)
        videos = [
            Video(self.decode(z).frames[:f, :h, :w], fps) for z, (w, h), f in zip(painted, sizes, lengths, strict=True)
        ]
        return videos[0] if isinstance(prompt, str) else videos

    # Prompted with pictures and footage: model.animate(image, "..."), model.extend(video, after=2.0) and so on.
    animate, extend, loop, connect = prompting.animate, prompting.extend, prompting.loop, prompting.connect
    interpolate, storyboard = prompting.interpolate, prompting.storyboard
    fill, outpaint, edit = prompting.fill, prompting.outpaint, prompting.edit

    def latents_of(self, width: int, height: int, frames: int) -> tuple[int, int, int]:
        """The least latent grid that covers a clip."""
        for what, value in (("width", width), ("height", height), ("number of frames", frames)):
            if int(value) != value or value < 1:
                raise InputError(f"a {what} of {value} cannot be painted: give a whole number of at least 1")
        time, side, _ = self.grid
        return 1 + -(-(frames - 1) // time), -(-height // side), -(-width // side)

    def save(self, folder: str | os.PathLike, dtype: str | None = "float32") -> None:
        """Writes the model folder, whole or not at all; a model that was there is replaced, other files in it stay.

        `dtype` of the stored parameters: float32, or bfloat16 for half the size; None: as they are. Matrices in 8 bits
        stay so. Raises InputError for another dtype, and for a folder that holds something else than a model; OSError
        when the disk refuses.
        """
        if dtype not in (None, "float32", "bfloat16"):
            raise InputError(
                f"dtype is {dtype!r}: float32, bfloat16 or None; `sora-jax export --dtype int8` makes 8 bits"
            )
        folder = local(folder)
        if folder.exists() and not (folder / "model.json").exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} holds something that is not a model: choose another place for it")
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            part.chmod(0o755)  # mkdtemp and safetensors keep what they make private
            if folder.exists():
                shutil.copytree(
                    folder, part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer.model")
                )
            for name, tree in self.params.items():
                leaves = flat(tree)
                tensors = {path: np.asarray(leaf) for path, leaf in bits.split(leaves).items()}
                if dtype:
                    wide = {path for path, leaf in leaves.items() if not bits.small(leaf)}
                    tensors |= {path: tensors[path].astype(jnp.dtype(dtype)) for path in wide}
                safetensors.save_file(tensors, part / f"{name}.safetensors")
                (part / f"{name}.safetensors").chmod(0o644)
            if self.tokenizer is not None:
                (part / "tokenizer.model").write_bytes(self.tokenizer.data)
            config = {"format": FORMAT, **self.config}
            (part / "model.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
            if folder.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
                folder.rename(old / "old")
                part.rename(folder)
                shutil.rmtree(old)
            else:
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def find(name: str | os.PathLike) -> Path:
    """Where a model is: the bundled one's name ("tiny"), or a path as it stands."""
    return BUNDLED.get(os.fspath(name), Path(name))


def load(path: str | os.PathLike = "tiny", host: bool | None = None, lora: Sequence = (), quant: str = "") -> Model:
    """Reads a model folder, or the bundled model "tiny"; parameters come as float32, whatever they are stored in, but
    those of a part that computes in bfloat16 stay as they are stored: it would round them so all the same. Under `with
    jax.set_mesh(...)` they lie spread over its devices. With `host` the transformers stay in the machine's memory, and
    each is on the device only while it paints; None: where there are two of them. `lora`: files to add to the
    transformers, each a path, (path, weight) or, of two transformers, (path, weight, "high" or "low" noise). `quant`:
    "int8" or "float8", for the matrices of transformers and text encoder in 8 bits (`weights.quant`), LoRAs included.

    Raises InputError naming the file or tensor that is missing, unreadable, of another shape, or too many.
    """
    folder = find(path)
    if not (folder / "model.json").is_file():
        raise InputError(f"{path} is not a model folder: it has no model.json")
    try:
        config = json.loads((folder / "model.json").read_text())
        version = config.pop("format")
        for part in ("vae", "text") if "dit" in config else ():
            if part not in config:
                raise InputError(f"{folder} has no {part}.safetensors yet: add it by `sora-jax import` of its file")
        config[next((part for part in ("captioner", "expander") if part in config), "vae")]  # every model has one
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder / 'model.json'} is not a model's config") from None
    if version != FORMAT:
        raise InputError(f"{folder} is of format {version}, this version of sora_jax reads {FORMAT}: update sora_jax")
    try:
        model = Model(config, {})
        shapes = shapes_of(model)
        if "dit" in shapes and (unsaid := SAMPLE - config["sample"].keys()):
            raise KeyError(f"sample.{min(unsaid)}")
    except (KeyError, TypeError) as error:  # a module without such a field, or one missing
        raise InputError(f"{folder / 'model.json'} does not describe a model of this version: {error}") from None
    host = "dit_low" in shapes if host is None else host
    added: dict[str, list] = {}
    if lora:
        from sora_jax.weights import lora as files_of  # which knows our trees

        added = files_of.chosen(config, lora)
    for name, tree in shapes.items():
        wide = getattr(model, "dit" if name in DITS else name).dtype != "bfloat16"
        tensors = _read(folder / f"{name}.safetensors", flat(tree))
        eight = any(x.dtype == np.int8 for x in tensors.values())
        tensors = {p: np.asarray(x, np.float32 if wide and x.dtype != np.int8 else x.dtype) for p, x in tensors.items()}
        if name in added and eight:
            raise InputError(
                f"{folder} holds its {name} in int8, whose steps a LoRA is smaller than: load the model that it was "
                'made of with the LoRA and quant="int8" (--quant int8)'
            )
        leaves = files_of.merged(tensors, added[name]) if name in added else bits.joined(tensors)
        part = {name: unflat(bits.quantised(leaves, quant) if quant and name in bits.PARTS else leaves)}
        model.params |= part if host and name in DITS else placed(part)
    if "captioner" in shapes or "expander" in shapes:
        model.tokenizer = Tokenizer(folder / "tokenizer.model")
    if "text" in shapes:
        model.tokenizer = Tokenizer(folder / "tokenizer.model", model.text.rows, model.text.clean)
        if model.tokenizer.vocab > model.text.vocab:
            raise InputError(
                f"{folder / 'tokenizer.model'} has {model.tokenizer.vocab} pieces, "
                f"the text encoder in {folder} knows only {model.text.vocab}"
            )
    return model


def shapes_of(model: Model) -> dict[str, dict]:
    """{"vae": tree, ...}: the shapes of all parameters the model's config asks for, without computing anything."""
    shapes = {"vae": vae_shapes(model.config["vae"])} if "vae" in model.config else {}
    if "captioner" in model.config:
        shapes["captioner"] = captioner_shapes(model.config["captioner"])
    if "expander" in model.config:
        shapes["expander"] = expander_shapes(model.config["expander"])
    if "dit" in model.config:
        shapes["text"] = text_shapes(model.config["text"])
        shapes |= {name: dit_shapes(model.config[name], model.text.width) for name in DITS if name in model.config}
    return shapes


def vae_shapes(fields: dict) -> dict:
    """The shapes of a VAE's parameters, as a tree."""
    vae = VAE(**_hashable(fields))
    time, side, _ = vae.grid
    return jax.eval_shape(lambda: vae.init(jax.random.key(0), jnp.zeros((1, 1 + time, side, side, 3))))["params"]


def text_shapes(fields: dict) -> dict:
    """The shapes of a text encoder's parameters, as a tree."""
    ints = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(lambda: TextEncoder(**_hashable(fields)).init(jax.random.key(0), ints, ints))["params"]


def dit_shapes(fields: dict, text: int) -> dict:
    """The shapes of a DiT's parameters, as a tree, for text states of width `text`."""
    dit, ints = DiT(**_hashable(fields)), jnp.zeros((1, 1), jnp.int32)
    x = jnp.zeros((1, 1, int(np.prod(dit.patch)) * (dit.channels + dit.given)))
    pos, t, ctx = jnp.zeros((1, 1, 3), jnp.int32), jnp.zeros((1, 1)), jnp.zeros((1, 1, text))
    return jax.eval_shape(lambda: dit.init(jax.random.key(0), x, pos, ints, t, ints, ctx, ints))["params"]


def captioner_shapes(fields: dict) -> dict:
    """The shapes of a captioner's parameters, as a tree."""
    captioner, ints = Captioner(**_hashable(fields)), jnp.zeros((1, 1), jnp.int32)
    x, pos = jnp.zeros((1, 1, 3 * int(np.prod(captioner.patch)))), jnp.zeros((1, 1, 3), jnp.int32)
    return jax.eval_shape(lambda: captioner.init(jax.random.key(0), x, pos, ints, ints, ints, 1))["params"]


def expander_shapes(fields: dict) -> dict:
    """The shapes of an expander's parameters, as a tree."""
    expander, ints = Expander(**_hashable(fields)), jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(lambda: expander.init(jax.random.key(0), ints[..., None], ints, ints, ints))["params"]


def flat(tree: dict, prefix: str = "") -> dict[str, Array]:
    """{"a": {"b": x}} -> {"a/b": x}."""
    leaves = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def unflat(leaves: dict[str, Array]) -> dict:
    """The inverse of `flat`."""
    tree: dict = {}
    for path, value in leaves.items():
        *rooms, name = path.split("/")
        at = tree
        for room in rooms:
            at = at.setdefault(room, {})
        at[name] = value
    return tree


def _read(path: Path, shapes: dict) -> dict[str, np.ndarray]:
    """The parameters by their paths in a safetensors file, which must hold exactly the tensors of `shapes`."""
    try:
        tensors = safetensors.load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}, which its model.json asks for") from None
    except SafetensorError:
        raise InputError(f"{path} is damaged or cut short: copy it again") from None
    shapes = shapes | bits.steps(shapes, tensors)
    for name in sorted(tensors.keys() ^ shapes.keys()):
        what = "has a tensor that the model has no place for" if name in tensors else "lacks a tensor of the model"
        raise InputError(f"{path} {what}: {name}")
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name].shape:
            raise InputError(f"{path}: {name} is {list(tensor.shape)}, the model needs {list(shapes[name].shape)}")
    return tensors


def _hashable(fields: dict) -> dict:
    """JSON has lists where a module's fields, which are part of what is compiled, must be tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _filled(x: np.ndarray, length: int) -> np.ndarray:
    """x, its last frame repeated up to a length."""
    return np.concatenate([x, np.repeat(x[-1:], length - len(x), 0)])
