"""The sentences of a scene: one short, one long, true to its state, their wording drawn from its seed."""

import numpy as np

MOVES = {
    "still": ("stays still", "stays in place", "does not move", "rests"),
    "left": ("moves left", "moves to the left", "slides left", "glides to the left", "travels left"),
    "right": ("moves right", "moves to the right", "slides right", "glides to the right", "travels right"),
    "up": ("moves up", "moves upwards", "rises", "slides up", "travels up"),
    "down": ("moves down", "moves downwards", "sinks", "slides down", "travels down"),
    "bounce left": ("bounces off the left wall", "moves left, bounces off the wall and comes back"),
    "bounce right": ("bounces off the right wall", "moves right, bounces off the wall and comes back"),
    "bounce up": ("bounces off the ceiling", "moves up, bounces off the top and comes back down"),
    "bounce down": ("bounces off the floor", "moves down, bounces off the bottom and comes back up"),
    "orbit": ("moves in a circle", "circles", "goes around in a circle"),
    "fall": ("falls and bounces", "drops and rebounds", "falls, hits the ground and bounces back"),
    "grow": ("grows", "gets bigger", "becomes larger"),
    "shrink": ("shrinks", "gets smaller", "becomes smaller"),
    "spin": ("spins", "rotates", "turns in place"),
    "hide": ("passes behind a pillar", "moves {way} behind a pillar and comes out again"),
}
SURFACES = {
    "striped": ("striped", "with dark stripes"),
    "dotted": ("dotted", "with dark dots"),
    "two-tone": ("two-tone", "with a dark lower half"),
}
CONVERSE = {
    "to its right": "to the left of",
    "to its left": "to the right of",
    "below it": "above",
    "above it": "below",
}
PANS = ("the camera pans {way}", "the camera moves {way}", "the view slides {way}")
ZOOMS = ("the camera zooms {way}", "the view zooms {way}")
STILL_CAMERA = ("the camera is still", "the camera stays still", "static camera", "a fixed view")


def captions(scene) -> tuple[str, str]:
    """(short, long) of a `worlds.Scene`: "a red circle moves right"; and subjects, places, actions, background, camera.

    A colour, a shape and an action named in one clause belong to one object. An image (one frame) is described without
    motion. At most about 60 words; the same scene gives the same words.
    """
    rng = np.random.default_rng((scene.seed, 1))
    short, long = _short(rng, scene), _long(rng, scene)
    finish = rng.random() < 0.25  # some people write whole sentences
    return tuple(text[0].upper() + text[1:] + "." if finish else text for text in (short, long))


def _one(rng, words):
    return words[rng.integers(len(words))]


def _name(rng, thing, detail: float, article: str = "a") -> str:
    """ "a small striped red circle": size and surface each with chance `detail` (where there is one to name)."""
    words, tail = [], ""
    if thing.scale != "medium" and thing.motion not in ("grow", "shrink") and rng.random() < detail:
        words.append(thing.scale)
    if thing.texture != "solid" and rng.random() < detail:
        before, after = SURFACES[thing.texture]
        if rng.random() < 0.6:
            words.append(before)
        else:
            tail = " " + after
    words += [thing.color, thing.shape]
    article = "an" if article == "a" and words[0][0] in "aeiou" else article
    return f"{article} {' '.join(words)}{tail}"


def _move(rng, thing, detail: float) -> str:
    key = f"bounce {thing.way}" if thing.motion == "bounce" else thing.motion
    words = MOVES[key]
    text = words[0] if rng.random() < 0.5 else _one(rng, words)
    if thing.motion in ("orbit", "spin") and rng.random() < detail:
        text += f" {thing.way}"
    if thing.motion == "hide":
        text = text.format(way=thing.way)
        if "comes out" not in text and rng.random() < detail:
            text += f" and comes out on the {thing.way}"
    return text


def _together(rng, scene, a: str, b: str, detail: float) -> str:
    """What things 0 and 1 (named a and b) do to each other."""
    if scene.event == "orbit":
        way = f" {scene.things[1].way}" if rng.random() < detail else ""
        return f"{b} {_one(rng, ('circles around', 'orbits', 'goes around'))} {a}{way}"
    return f"{a} and {b} " + _one(
        rng, ("collide and bounce apart", "bump into each other", "collide", "meet and bounce back")
    )


def _ground(scene) -> str:
    ground = scene.background
    return {
        "plain": f"a plain {ground.color} background",
        "gradient": f"a background fading from {ground.color} to {ground.other}",
        "horizon": f"a {ground.color} sky over flat {ground.other} ground",
        "hills": f"a {ground.color} sky over {ground.other} hills",
        "tiles": f"soft {ground.color} and {ground.other} tiles",
    }[ground.kind]


def _camera(rng, scene) -> str:
    kind, way = scene.camera.split()
    return _one(rng, PANS if kind == "pan" else ZOOMS).format(way=way)


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _relation(first, other) -> str:
    """Where `other` starts as seen from `first`."""
    dx, dy = other.track[0][0] - first.track[0][0], other.track[0][1] - first.track[0][1]
    if abs(dx) > abs(dy):
        return "to its right" if dx > 0 else "to its left"
    return "below it" if dy > 0 else "above it"


def _place(scene, thing) -> str:
    """Where a thing starts: one of nine places."""
    x, y = thing.track[0][0] / scene.width, thing.track[0][1] / scene.height
    column = "left" if x < 0.37 else "right" if x > 0.63 else ""
    row = "upper" if y < 0.37 else "lower" if y > 0.63 else ""
    if row and column:
        return f"in the {row} {column}"
    if column:
        return f"on the {column}"
    return {"upper": "at the top", "lower": "at the bottom", "": "in the middle"}[row]


def _short(rng, scene) -> str:
    detail = 0.35
    names = [_name(rng, thing, detail) for thing in scene.things]
    if scene.frames == 1:
        if len(names) == 2 and rng.random() < 0.5:
            text = f"{names[0]} {CONVERSE[_relation(*scene.things)]} {names[1]}"
        else:
            text = _listed(names)
        return text + (f" on {_ground(scene)}" if scene.background.kind == "plain" and rng.random() < 0.4 else "")
    if scene.camera != "still":
        return f"{_listed(names)}, {_camera(rng, scene)}"
    clauses = [_together(rng, scene, *names[:2], 0.3)] if scene.event else []
    clauses += [
        f"{name} {_move(rng, thing, 0.3)}" for name, thing in list(zip(names, scene.things))[2 * bool(scene.event) :]
    ]
    return _listed(clauses)


def _long(rng, scene) -> str:
    things, image, detail = scene.things, scene.frames == 1, 0.85
    names = [_name(rng, thing, detail) for thing in things]
    clauses = []
    if scene.event == "collide":
        clauses.append(
            f"{names[0]} on the left and {names[1]} on the right move towards each other, collide and bounce apart"
        )
    elif scene.event == "orbit":
        clauses.append(f"{names[0]} stays still {_place(scene, things[0])}")
        clauses.append(_together(rng, scene, "it", names[1], detail))
    for i in range(2 if scene.event else 0, len(things)):
        action = "" if image or scene.camera != "still" else _move(rng, things[i], detail)
        if i == 0:
            straight = things[i].motion in ("left", "right", "up", "down", "hide")
            where = _place(scene, things[i])
            start = f"starts {where} and {action}" if straight and rng.random() < 0.4 else f"{where} {action}"
            clauses.append(f"{names[i]} {start if action else where}".strip())
        elif i == 1:
            clauses.append(f"{_relation(things[0], things[1])} {names[1]} {action}".strip())
        else:
            clauses.append(f"{names[i]} {_place(scene, things[i])} {action}".strip())
    clauses = ["; ".join(clauses)]
    if scene.camera != "still":
        objects = "object stands" if len(things) == 1 else "objects stand"
        clauses.append(_camera(rng, scene) + _one(rng, ("", f" while the {objects} still")))
    ground = _ground(scene)
    behind = ground.replace("a plain", "is plain").replace(" background", "").replace("a fading", "fades")
    behind = behind if scene.background.kind in ("plain", "gradient") else f"is {ground}"
    clauses.append(_one(rng, (f"in front of {ground}", f"the background {behind}", ground)))
    if not image and scene.camera == "still" and rng.random() < 0.5:
        clauses.append(_one(rng, STILL_CAMERA))
    return ", ".join(clauses)
