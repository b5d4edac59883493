"""diffusers' AutoencoderKLWan of few channels, in its 2.1 and its 2.2 form, on images and clips of odd sizes."""

import torch
from diffusers import AutoencoderKLWan
from drawn import drawn, weight
from peer import seeded, write

FORMS = {
    "2.1": dict(base_dim=4),
    "2.2": dict(
        base_dim=4, decoder_base_dim=6, z_dim=48, is_residual=True, patch_size=2, in_channels=12, out_channels=12,
        scale_factor_spatial=16, latents_mean=[0.0] * 48, latents_std=[1.0] * 48,
    ),
}  # fmt: skip
# frames, height, width; 2.1 takes sides that are no multiples of a latent's, and floors
CLIPS = {
    "2.1": [(5, 36, 52), (1, 24, 16), (17, 24, 16), (81, 24, 16)],
    "2.2": [(5, 80, 48), (1, 16, 32), (17, 16, 32), (81, 16, 32)],
}
KEPT = (0, 1, 2, 3, 4, 39, 40, 78, 79, 80)  # of 81 frames


if __name__ == "__main__":
    seeded()
    tensors = {}
    for form, settings in FORMS.items():
        vae = AutoencoderKLWan(**settings).eval()
        vae.load_state_dict({n: torch.from_numpy(weight(n, tuple(p.shape))) for n, p in vae.state_dict().items()})
        for frames, height, width in CLIPS[form]:
            case = f"{form}/{frames}x{height}x{width}"
            video = torch.from_numpy(drawn(case, (1, 3, frames, height, width))).clamp(-1, 1)
            with torch.no_grad():
                posterior = vae.encode(video).latent_dist
                z = torch.from_numpy(drawn(f"{case}/z", tuple(posterior.mean.shape)))
                pixels = vae.decode(z).sample
            assert (pixels.abs() == 1).float().mean() < 0.05, "too much is clipped to tell anything"
            kept = KEPT if frames == 81 else range(frames)
            tensors |= {f"{case}/mean": posterior.mean, f"{case}/logvar": posterior.logvar}
            tensors[f"{case}/pixels"] = pixels[:, :, list(kept)]
    write("wan_vae", tensors)
