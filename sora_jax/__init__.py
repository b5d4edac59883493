"""sora_jax."""
