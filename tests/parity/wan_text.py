"""transformers' umT5 and T5 v1.1 encoders on padded prompts, the tokens and cleaned texts diffusers gives them."""

import json

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from peer import FIXTURES, roughened, seeded, write
from transformers import AutoTokenizer, T5Config, T5EncoderModel, UMT5EncoderModel

PROMPTS = [
    "a red circle moves right",
    "  The cafÃ© in ZÃ¼rich,\n\tat   night &amp;amp; day ",
    "“curly” quotes, it’s ﬁne… ＦＵＬＬ width",
    "&lt;b&gt;bold&lt;/b&gt; e\u0301 \u00a0 nbsp",
    "日本語 and emoji 🎬",
    "",
    "one two three four five six seven eight nine ten " * 4,
]
ROWS = 24


if __name__ == "__main__":
    generator = seeded()
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "wan" / "tokenizer")
    cleaned = [prompt_clean(prompt) for prompt in PROMPTS]
    fed = tokenizer(
        cleaned, padding="max_length", max_length=ROWS, truncation=True, add_special_tokens=True, return_tensors="pt"
    )
    facts = [{"prompt": prompt, "clean": text} for prompt, text in zip(PROMPTS, cleaned)]
    (FIXTURES / "wan_text.json").write_text(json.dumps(facts, indent=1) + "\n")
    umt5 = UMT5EncoderModel.from_pretrained(FIXTURES / "wan" / "text_encoder").eval()
    config = T5Config(
        vocab_size=umt5.config.vocab_size, d_model=32, d_kv=8, d_ff=24, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    t5 = roughened(T5EncoderModel(config), generator)
    tensors = {"ids": fed.input_ids, "mask": fed.attention_mask}
    with torch.no_grad():
        tensors["umt5"] = umt5(fed.input_ids, fed.attention_mask).last_hidden_state
        tensors["t5"] = t5(fed.input_ids, fed.attention_mask).last_hidden_state
    tensors |= {f"t5/{name}": value.clone() for name, value in t5.state_dict().items()}
    write("wan_text", tensors)
