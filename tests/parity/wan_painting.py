"""diffusers' WanPipeline, whole, on the random weights of tests/fixtures/wan: latents and frames.

`one` has one transformer, `two` a second one below the noise level 0.8: the first's weights times 0.8.
"""

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from peer import FIXTURES, seeded, write
from transformers import AutoTokenizer, UMT5EncoderModel

HOME, PROMPT, ROWS, STEPS = FIXTURES / "wan", "a small blue star falls &amp; bounces", 32, 6


def noise() -> torch.Tensor:
    """What our sampler draws for seed 7's first canvas."""
    drawn = np.random.Generator(np.random.Philox([7, 0])).standard_normal((2, 4, 6, 16), np.float32)
    return torch.from_numpy(drawn).permute(3, 0, 1, 2)[None]


def pipeline(second: bool) -> WanPipeline:
    transformer = WanTransformer3DModel.from_pretrained(HOME / "transformer")
    other = None
    if second:
        other = WanTransformer3DModel.from_pretrained(HOME / "transformer")
        with torch.no_grad():
            for parameter in other.parameters():
                parameter *= 0.8
    return WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(HOME / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(HOME / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(HOME / "vae"),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=5.0
        ),
        transformer=transformer,
        transformer_2=other,
        boundary_ratio=0.8 if second else None,
    )


def painted(pipeline: WanPipeline, second: bool) -> tuple[torch.Tensor, torch.Tensor]:
    pipeline.set_progress_bar_config(disable=True)
    how = dict(prompt=PROMPT, negative_prompt="", height=32, width=48, num_frames=5, num_inference_steps=STEPS)
    how |= dict(guidance_scale=4.0, max_sequence_length=ROWS) | (dict(guidance_scale_2=2.0) if second else {})
    latents = pipeline(latents=noise(), output_type="latent", **how).frames
    frames = pipeline(latents=noise(), output_type="np", **how).frames
    return latents[0], torch.from_numpy((frames[0] * 255).round().astype(np.uint8))


if __name__ == "__main__":
    seeded()
    tensors = {}
    for name in ("one", "two"):
        tensors[f"{name}/latents"], tensors[f"{name}/frames"] = painted(pipeline(name == "two"), name == "two")
    write("wan_painting", tensors)
