"""diffusers' WanImageToVideoPipeline as Wan 2.2's I2V-A14B has it: a picture's latents and a mask beside the noise.

The transformer is that of tests/fixtures/wan with the wider way in of wan_dit's i2v; the picture is drawn.
"""

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from drawn import drawn
from peer import FIXTURES, seeded, write
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, UMT5EncoderModel
from wan_painting import HOME, PROMPT, ROWS, STEPS, noise


def transformer() -> WanTransformer3DModel:
    model = WanTransformer3DModel.from_pretrained(HOME / "transformer", in_channels=36, ignore_mismatched_sizes=True)
    wider = load_file(FIXTURES / "wan_dit.safetensors")
    with torch.no_grad():
        model.patch_embedding = torch.nn.Conv3d(36, 28, (1, 2, 2), (1, 2, 2))
        model.patch_embedding.weight.copy_(wider["i2v/patch_embedding.weight"])
        model.patch_embedding.bias.copy_(wider["i2v/patch_embedding.bias"])
    return model.eval()


if __name__ == "__main__":
    seeded()
    pipeline = WanImageToVideoPipeline(
        tokenizer=AutoTokenizer.from_pretrained(HOME / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(HOME / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(HOME / "vae"),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=5.0
        ),
        transformer=transformer(),
    )
    pipeline.set_progress_bar_config(disable=True)
    pictures = [(np.clip(drawn(name, (32, 48, 3)) * 60 + 128, 0, 255)).astype(np.uint8) for name in ("first", "last")]
    first, last = map(Image.fromarray, pictures)
    how = dict(prompt=PROMPT, negative_prompt="", height=32, width=48, num_frames=5, num_inference_steps=STEPS)
    how |= dict(guidance_scale=4.0, max_sequence_length=ROWS)
    tensors = {"first": torch.from_numpy(pictures[0]), "last": torch.from_numpy(pictures[1])}
    for name, more in (("one", {}), ("both", {"last_image": last})):
        tensors[name] = pipeline(first, latents=noise(), output_type="latent", **how, **more).frames[0]
    write("wan_picture", tensors)
