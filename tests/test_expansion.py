"""Expanded prompts: nothing of the prompt is lost or changed, same seed same text, and the file says what was
painted.
"""

import json

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax import cli_paint
from sora_jax.cli import main
from sora_jax.data import worlds
from sora_jax.errors import InputError
from sora_jax.expansion import INSTRUCTION, SHOTS, expand, lost
from tests.openai_server import Answer, serve


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def said(text: str) -> Answer:
    return Answer("Of course!\n```json\n" + json.dumps({"long": text}) + "\n```")


KEPT = [
    ("a red ball", "A small red ball rests on a wooden floor, soft light from above."),
    ("two dogs run", "Two brown dogs run across a wet beach at dusk, one camera following them."),
    ("2 dogs run", "Two dogs are running over grass."),
    ("a blue star moves left", "A blue star starts on the right and moves to the left, before a plain background."),
    ("the moon rises over a city", "A pale moon rises slowly over a city of many lights."),
    (
        "a red circle and a green square",
        "In the upper left a red circle; below it a green square, the background is white.",
    ),
    ("a green triangle spins clockwise", "A striped green triangle in the middle spins clockwise, static camera."),
]
CHANGED = [
    ("a red ball", "A blue ball rests on a red carpet."),
    ("a red ball", "A red box on a floor."),
    ("a red ball", "A red ball and a yellow ball roll."),
    ("a red ball", "Three red ball toys, a red ball."),
    ("two dogs run", "Three dogs run on a beach, two of them brown."),
    ("two dogs run", "Dogs run on a beach."),
    ("a blue star moves left", "A blue star moves right, a fixed view."),
    ("a blue star moves left", "A blue star moves left and then right again."),
    ("a green triangle spins clockwise", "A green triangle spins counterclockwise."),
    ("a red circle and a green square", "A green circle and a red square."),
]


@pytest.mark.parametrize("prompt, text", KEPT)
def test_what_keeps_the_prompt_passes(prompt, text):
    assert lost(prompt, text) == []


@pytest.mark.parametrize("prompt, text", CHANGED)
def test_what_changes_it_does_not(prompt, text):
    assert lost(prompt, text)


def test_a_prompt_never_contradicts_itself():
    for seed in range(300):
        for text in worlds.captions(worlds.sample(seed, frames=9)):
            assert lost(text, text) == []


def test_colours_of_the_world_that_are_swapped_are_noticed():
    for seed in range(100):
        thing = worlds.sample(seed, frames=9, count=1).things[0]
        other = "green" if thing.color != "green" else "pink"
        prompt, text = f"a {thing.color} {thing.shape}", f"A {other} {thing.shape} in the middle, {thing.color} tiles."
        assert lost(prompt, text)


def test_the_endpoint_is_shown_examples_and_the_prompt_as_content():
    with serve(lambda body, n: said("A red ball lies on sand.")) as server:
        made = expand("a red ball", f"openai:{server.url}#lm", seed=7, examples="world")
    assert made == ("a red ball", "A red ball lies on sand.", f"openai:{server.url}#lm", "")
    messages = server.requests[0]["messages"]
    assert messages[0] == {"role": "system", "content": INSTRUCTION} and messages[-1]["content"] == "a red ball"
    pairs = [(a["content"], json.loads(b["content"])["long"]) for a, b in zip(messages[1:-1:2], messages[2:-1:2])]
    assert len(pairs) == SHOTS and all(len(short) < len(long) for short, long in pairs)


def test_same_seed_same_text_whatever_the_endpoint_draws():
    with serve(lambda body, n: said(f"A red ball, take {body['seed']}.{n}")) as server:
        who = f"openai:{server.url}#lm"
        first, other = expand("a red ball", who, seed=1), expand("a red ball", who, seed=2)
        assert expand("a red ball", who, seed=1) == first != other and len(server.requests) == 2


def test_a_contradiction_is_asked_again_and_then_the_prompt_stays():
    with serve(lambda body, n: said("A blue ball." if n == 0 else "A red ball in fog.")) as server:
        assert expand("a red ball", f"openai:{server.url}#lm").text == "A red ball in fog."
        assert len(server.requests) == 2
    with serve(lambda body, n: said("A blue ball.")) as server:
        made = expand("a red ball", f"openai:{server.url}#lm")
    assert (made.text, made.source, len(server.requests)) == ("a red ball", "", 2)
    assert "not expanded: twice" in made.warning and "'red' is gone" in made.warning


def test_an_endpoint_that_is_not_there_is_one_sentence():
    with pytest.raises(InputError, match=r"did not answer .*leave the prompt as it is"):
        from sora_jax import endpoint, expansion

        asked = endpoint.Endpoint("http://127.0.0.1:9/v1", "m", timeout=1.0, retries=0)
        expansion.written("a red ball", asked, "x", [], 0)


def test_the_command_and_none(capsys):
    assert main(["expand", "a red ball", "--expander", "none"]) == 0
    assert capsys.readouterr().out == "a red ball\n"
    assert main(["expand", " ", "--expander", "none"]) == 2
    assert main(["expand", "a red ball", "--expander", "someone"]) == 2


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.png", "a.jpg"])
def test_the_file_says_what_was_painted(name, tmp_path):
    about = {"prompt": "a red ball", "expanded": 'A red ball, "still", 球', "by": "openai:x#y"}
    frames = np.zeros((1 if name[-3:] in ("png", "jpg") else 5, 16, 32, 3), np.uint8)
    cli_paint.write(str(tmp_path / name), 8.0, iter([frames]), False, about)
    if len(frames) == 1:
        comment = Image.open(tmp_path / name).info["comment"]
        comment = comment.decode() if isinstance(comment, bytes) else comment
    else:
        with av.open(str(tmp_path / name)) as container:
            comment = {key.lower(): value for key, value in container.metadata.items()}["comment"]
    assert json.loads(comment) == about
