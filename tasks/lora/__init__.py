"""LoRA adapters: small weights that are added to those of a model, once, before it is converted."""
