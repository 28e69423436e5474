"""RePaViT (ICML 2025)."""
