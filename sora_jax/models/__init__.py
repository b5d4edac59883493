"""Everything that owns parameters: layers, vae, text, dit. Flax Linen modules, pure init/apply."""
