"""diffusers' WanTransformer3DModel on two clips of different size, each alone, in the three forms that are published:

    t2v   16 channels, one noise level a clip                 (Wan 2.1 T2V, Wan 2.2 T2V-A14B)
    i2v   20 more channels beside the 16 of noise             (Wan 2.2 I2V-A14B)
    ti2v  a noise level a patch, the first frame's at 0       (Wan 2.2 TI2V-5B)

Written are inputs, outputs, and the gradient of sum(output * cotangent), summed over both clips, for every weight
(of i2v: for those that the other forms do not have).
"""

import torch
from diffusers import WanTransformer3DModel
from peer import FIXTURES, roughened, seeded, write

CLIPS = {"a": ((3, 4, 6), 637, 9), "b": ((1, 8, 2), 91, 5)}  # latent frames, rows, columns; timestep; text rows


def run(model: WanTransformer3DModel, form: str, inside: int, generator: torch.Generator) -> dict:
    tensors = {}
    model.zero_grad()
    for clip, ((f, h, w), timestep, words) in CLIPS.items():
        x = torch.randn((1, inside, f, h, w), generator=generator)
        text = torch.randn((1, words, 32), generator=generator)
        time = torch.tensor([timestep])
        if form == "ti2v":
            time = torch.full((1, f * h * w // 4), timestep)
            time[:, : h * w // 4] = 0
        out = model(x, time, text, return_dict=False)[0]
        cotangent = torch.randn(out.shape, generator=generator)
        (out * cotangent).sum().backward()
        named = {"x": x, "t": time.flatten(), "text": text[0], "out": out, "cotangent": cotangent}
        tensors |= {f"{form}/{clip}/{name}": value[0] if value.ndim == 5 else value for name, value in named.items()}
    for name, parameter in model.named_parameters():
        if form != "i2v" or name.startswith("patch_embedding"):
            tensors[f"{form}/grad/{name}"] = parameter.grad
    return tensors


if __name__ == "__main__":
    generator = seeded()
    model = WanTransformer3DModel.from_pretrained(FIXTURES / "wan" / "transformer")
    tensors = {}
    for form in ("t2v", "ti2v"):
        tensors |= {k: v.clone() for k, v in run(model, form, 16, generator).items()}
    wider = roughened(torch.nn.Conv3d(36, 28, (1, 2, 2), (1, 2, 2)), generator)
    model.patch_embedding = wider
    tensors["i2v/patch_embedding.weight"] = wider.weight
    tensors["i2v/patch_embedding.bias"] = wider.bias
    tensors |= run(model, "i2v", 36, generator)
    write("wan_dit", tensors)
