"""Curation: hours of raw footage to good clips.

    sora-jax data curate footage/ --out runs/curated
    sora-jax data build runs/curated --out runs/clips

`scan` says what is measured: another scan wants another --out. `keep` says what is good enough: change it, run the same
command again, and the verdicts and the report are new in seconds, as no footage is read again. Units are in
sora_jax/data/scores.py; the report shows where each threshold cuts the footage at hand.

Variants:
    default   what a training on live action and animation wants.
    cuts      shots without duplicates and black frames, whatever they look like.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "default") -> ConfigDict:
    """The config of a variant; locked, so that an unknown key is an error."""
    c = ConfigDict()

    c.scan = ConfigDict()
    c.scan.size = 320  # longer side of the frames that are looked at; small print, such as end credits, wants 640
    c.scan.every = 0.5  # seconds between the moments of which scores and hashes are made
    c.scan.seconds = 20.0  # a longer shot becomes several clips
    # PySceneDetect's AdaptiveDetector: a shot begins where the content changes at least `cut_content` (mean difference
    # in hue, saturation and value) and `cut_ratio` times as much as in the two frames on either side ...
    c.scan.cut_ratio = 3.0
    c.scan.cut_content = 15.0
    c.scan.cut_seconds = 0.3  # ... and at least this long after the one before
    c.scan.text = True  # where RapidOCR is installed

    c.keep = ConfigDict()
    c.keep.seconds = 1.0  # at least
    c.keep.side = 128  # pixels of the shorter side, at least, letterbox cut off
    c.keep.change = 0.2  # at least: less is static
    c.keep.motion = 120.0  # at most; also these
    c.keep.shake = 40.0
    c.keep.blur = 0.7
    c.keep.dark = 80.0
    c.keep.bright = 50.0
    c.keep.text = 2.0
    # A duplicate: `share` of its moments differ from another clip's in at most `bits` of 64 and `levels` of 255.
    c.keep.bits = 4
    c.keep.levels = 6.0
    c.keep.share = 0.5

    if variant == "cuts":
        c.scan.text = False
        c.keep.update({"seconds": 0.0, "side": 1, "change": 0.0, "motion": 1e9, "shake": 1e9, "blur": 1.0})
        c.keep.update({"dark": 100.0, "bright": 100.0, "text": 100.0})
    elif variant != "default":
        raise ValueError(f"configs/curate.py has no variant {variant!r}; choose default or cuts")
    return c.lock()
