"""How true a captioner's sentences are, on held-out scenes of the embedded world whose state is known.

A caption is read back by the grammar it was written in (`data.wording`): an object is named where a colour stands
before a shape; what stands between two names is what the first of them does. The scores, each from 0 to 1:

    color      objects whose colour is named
    object     objects whose colour is named together with their shape: shapes and colours right
    direction  objects that go left, right, up or down and are said to, of those in videos with a camera that stands
               still
    motion     the same of every motion
    count      clips of which as many objects are named as there are
    camera     videos whose camera is said to do what it does (one that is not mentioned stands still)
    ground     clips whose background is named in full
    size       objects said to be small or large that are
    texture    objects said to have stripes, dots or two tones that have

and against the one caption that the scene's own seed words, `bleu`, the corpus's BLEU-4 (Papineni et al. 2002), and
`cider`, from 0 to 10, CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726), to which words that few captions have count
more. That caption's words are drawn at random, so that the best captioner of all stays well below 1 and 10.
"""

import json
import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from sora_jax.data import worlds
from sora_jax.data.drawing import COLORS, SHAPES
from sora_jax.data.motions import STRAIGHT
from sora_jax.data.wording import MOVES, PANS, STILL_CAMERA, SURFACES, ZOOMS, _ground
from sora_jax.media import Video

TAILS = {after: name for name, (_, after) in SURFACES.items()}
TOLD = re.compile(
    rf"(?:\b(?P<size>small|large) )?(?:\b(?P<texture>{'|'.join(SURFACES)}) )?"
    rf"\b(?P<color>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)})\b(?: (?P<tail>{'|'.join(TAILS)}))?"
)
TOGETHER = {
    "collide": ("collide", "bump into each other", "meet and bounce back", "move towards each other"),
    "orbit": ("circles around", "orbits", "goes around a", "goes around it"),
}
# every phrase that tells a motion, the longest first: "moves up, bounces off the top" is no "moves up"
PHRASES = sorted(
    [(phrase, motion) for motion, phrases in MOVES.items() for phrase in phrases if "{" not in phrase]
    + [(f"moves {way} behind a pillar", "hide") for way in ("left", "right")]
    + [(phrase, event) for event, phrases in TOGETHER.items() for phrase in phrases],
    key=lambda pair: -len(pair[0]),
)
CAMERAS = {phrase.format(way=way): f"pan {way}" for phrase in PANS for way in STRAIGHT}
CAMERAS |= {phrase.format(way=way): f"zoom {way}" for phrase in ZOOMS for way in ("in", "out")}


class Told(NamedTuple):
    """An object that a caption names; motion is a key of MOVES or TOGETHER, "" where none is said."""

    color: str
    shape: str
    size: str
    texture: str
    motion: str


def parse(caption: str) -> tuple[list[Told], str]:
    """(the objects that a caption names, in its order; what the camera does, "still" where nothing is said of it)."""
    text = caption.lower()
    camera, at = next(((name, text.find(p)) for p, name in CAMERAS.items() if p in text), ("still", len(text)))
    at = min([at, *(text.find(p) for p in STILL_CAMERA if p in text)])  # "stays still" may be said of both
    names, objects = list(TOLD.finditer(text[:at])), []
    for name, following in zip(names, [*names[1:], None]):
        does = text[name.end() : following.start() if following else at]
        motion = next((motion for phrase, motion in PHRASES if phrase in does), "")
        texture = name["texture"] or TAILS.get(name["tail"], "solid")
        objects.append(Told(name["color"], name["shape"], name["size"] or "medium", texture, motion))
    return objects, camera


def checked(caption: str, scene: worlds.Scene) -> dict[str, list[bool]]:
    """For every score its yes and no; an empty list where the scene does not ask."""
    objects, camera = parse(caption)
    by = {told.color: told for told in reversed(objects)}
    moves = scene.frames > 1 and scene.camera == "still"
    found = {name: [] for name in ("color", "object", "direction", "motion", "size", "texture")}
    for thing in scene.things:
        told = by.get(thing.color)
        found["color"].append(told is not None)
        found["object"].append(told is not None and told.shape == thing.shape)
        if told and told.size != "medium":
            found["size"].append(told.size == thing.scale)
        if told and told.texture != "solid":
            found["texture"].append(told.texture == thing.texture)
        if moves:
            right = told is not None and does(told, thing, scene)
            found["motion"].append(right)
            found["direction"] += [right] if thing.motion in STRAIGHT else []
    found["count"] = [len(objects) == len(scene.things)]
    found["camera"] = [camera == scene.camera] if scene.frames > 1 else []
    ground = _ground(scene).removeprefix("a background fading ").removeprefix("a ").removesuffix(" background")
    found["ground"] = [ground in caption.lower()]
    return found


def does(told: Told, thing: worlds.Thing, scene: worlds.Scene) -> bool:
    """Whether an object is told to do what it does; two that collide are told of together."""
    if thing.motion == "bounce":
        return told.motion == f"bounce {thing.way}"
    if thing.motion == "collide":
        return told.motion in ("collide", "")  # behind the second name; the first has only its place
    if scene.event == "orbit" and thing is scene.things[0]:
        return told.motion in ("still", "")  # in a short caption only the other's circle is told
    return told.motion == thing.motion or (thing.motion == "orbit" and told.motion == "orbit")


def bleu(candidates: list[str], references: list[str], order: int = 4) -> float:
    """Corpus BLEU with one reference each, words as they are between spaces, lower case, commas and stops apart."""
    hits, totals, said, meant = np.zeros(order), np.zeros(order), 0, 0
    for candidate, reference in zip(candidates, references, strict=True):
        a, b = (re.findall(r"[a-z-]+|[,.;]", text.lower()) for text in (candidate, reference))
        said, meant = said + len(a), meant + len(b)
        for n in range(1, order + 1):
            grams = [Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for words in (a, b)]
            hits[n - 1] += sum((grams[0] & grams[1]).values())
            totals[n - 1] += sum(grams[0].values())
    if not hits.all():
        return 0.0
    return float(np.exp(np.log(hits / totals).mean()) * min(1.0, math.exp(1 - meant / max(said, 1))))


def cider(candidates: list[str], references: list[str], order: int = 4, sigma: float = 6.0) -> float:
    """Corpus CIDEr-D with one reference each, words as in `bleu`: 10 times the mean over n = 1..order and captions of

        exp(-(difference in words)^2 / (2 sigma^2))  min(c, r) . r / (|c| |r|)

    with c and r the counts of n-grams, each times log(references / references that have it, at least 1).
    """
    words = [[re.findall(r"[a-z-]+|[,.;]", text.lower()) for text in two] for two in zip(candidates, references)]
    total = 0.0
    for n in range(1, order + 1):
        grams = [[Counter(tuple(said[i : i + n]) for i in range(len(said) - n + 1)) for said in two] for two in words]
        having = Counter(gram for _, reference in grams for gram in reference)
        rare = {gram: math.log(len(grams) / count) ** 2 for gram, count in having.items()}
        unheard = math.log(len(grams)) ** 2
        for (said, meant), (a, b) in zip(words, grams):
            dot = sum(min(a[gram], count) * count * rare[gram] for gram, count in b.items())
            sizes = [sum(count**2 * rare.get(gram, unheard) for gram, count in each.items()) for each in (a, b)]
            near = math.exp(-((len(said) - len(meant)) ** 2) / (2 * sigma**2))
            total += near * dot / math.sqrt(math.prod(sizes)) if all(sizes) else 0.0
    return 10 * total / (order * len(words))


def scored(captions: list[str], scenes: list[worlds.Scene]) -> dict[str, float | None]:
    """The share of yes in each score, None where nothing was asked; and `bleu` and `cider`."""
    verdicts = [checked(caption, scene) for caption, scene in zip(captions, scenes, strict=True)]
    asked = {name: [ok for verdict in verdicts for ok in verdict[name]] for name in verdicts[0]}
    scores = {name: round(float(np.mean(oks)), 4) if oks else None for name, oks in asked.items()}
    own = [worlds.captions(scene)[1] for scene in scenes]
    return scores | {"bleu": round(bleu(captions, own), 4), "cider": round(cider(captions, own), 4)}


def judged(model, clips: int, first: int, frames: int | None = None) -> dict[str, float | None]:
    """The scores of a captioner's long captions of the scenes from seed `first` on, at their own sizes and lengths."""
    from sora_jax.captioning import describe

    scenes = [worlds.sample(first + i, frames=frames) for i in range(clips)]
    told = describe(model, [Video(worlds.render(scene), scene.fps) for scene in scenes])
    return scored([one["text"] for one in told], scenes)


def evaluate(model="captioner", *, clips: int = 500, first: int = worlds.HELD_OUT, quiet: bool = False) -> dict:
    """Scores a captioner (or the folder or name of one) on `clips` held-out scenes; prints a table and a JSON line."""
    from sora_jax.model import load

    scores = judged(load(model) if isinstance(model, str) else model, clips, first)
    result = {**scores, "clips": clips, "first_seed": first}
    if not quiet:
        for name, value in scores.items():
            whole = 1 if name == "cider" else 100  # percent, but of CIDEr's 10
            print(f"{name:10} {'-' if value is None else f'{whole * value:5.1f}'}")
    print(json.dumps(result))
    return result
