"""LoRA files as PEFT and diffusers write them, and in the original names, and what the transformer computes with them.

    wan_lora_peft      by PEFT, rank 3, alpha 6, saved by diffusers with alpha in its header
    wan_lora_original  lora_down and lora_up with alpha of its own for every module, and biases, as few-step LoRAs have

Written are the outputs for the first clip of wan_dit with each of them, and with both, by weights.

With a file as argument: it, which ours made of wan_lora_peft, does in diffusers what that one did.
"""

import sys

import torch
from diffusers import WanPipeline
from peer import FIXTURES, seeded, write
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from wan_painting import pipeline

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2", "proj_out", "patch_embedding"]
PEFT, ORIGINAL = (FIXTURES / f"wan_lora_{name}.safetensors" for name in ("peft", "original"))
MODULES = {  # of the original names: (out, in), rank, alpha
    "blocks.0.self_attn.q": ((28, 28), 2, 1.0),
    "blocks.0.ffn.0": ((48, 28), 4, 8.0),
    "blocks.1.cross_attn.k": ((28, 28), 3, None),
    "blocks.1.ffn.2": ((28, 48), 2, 2.0),
    "time_projection.1": ((168, 28), 2, None),
    "head.head": ((64, 28), 2, None),
}


def computed(pipeline: WanPipeline) -> torch.Tensor:
    """The output for the first clip of wan_dit, at rest or with what is loaded."""
    clip = {name: x for name, x in load_file(FIXTURES / "wan_dit.safetensors").items() if name.startswith("t2v/a/")}
    with torch.no_grad():
        text = clip["t2v/a/text"][None]
        return pipeline.transformer(clip["t2v/a/x"][None], clip["t2v/a/t"], text, return_dict=False)[0][0]


def by_peft(generator: torch.Generator) -> None:
    model = pipeline(False).transformer
    model.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    WanPipeline.save_lora_weights(
        PEFT.parent,
        get_peft_model_state_dict(model),
        weight_name=PEFT.name,
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )


def by_hand(generator: torch.Generator) -> None:
    tensors = {}
    for module, ((out, inside), rank, alpha) in MODULES.items():
        name = f"diffusion_model.{module}"
        tensors[f"{name}.lora_down.weight"] = 0.3 * torch.randn((rank, inside), generator=generator)
        tensors[f"{name}.lora_up.weight"] = 0.3 * torch.randn((out, rank), generator=generator)
        tensors[f"{name}.diff_b"] = 0.3 * torch.randn(out, generator=generator)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, ORIGINAL)


def with_adapters(**weights: float) -> torch.Tensor:
    painter = pipeline(False)
    for name in weights:
        painter.load_lora_weights(str(FIXTURES / f"wan_lora_{name}.safetensors"), adapter_name=name)
    painter.set_adapters(list(weights), list(weights.values()))
    return computed(painter)


if __name__ == "__main__":
    generator = seeded()
    if sys.argv[1:]:
        before, painter = load_file(FIXTURES / "wan_lora.safetensors"), pipeline(False)
        painter.load_lora_weights(sys.argv[1])
        torch.testing.assert_close(computed(painter), before["peft"], rtol=0, atol=1e-5)
        assert (before["neither"] - before["peft"]).abs().max() > 0.1
        print(f"diffusers computes with {sys.argv[1]} what it did with the LoRA that it was made from")
        sys.exit()
    by_peft(generator)
    by_hand(generator)
    outputs = {name: with_adapters(**{name: 1.0}) for name in ("peft", "original")}
    outputs["both"] = with_adapters(peft=0.7, original=-0.4)
    outputs["neither"] = computed(pipeline(False))
    write("wan_lora", outputs)
