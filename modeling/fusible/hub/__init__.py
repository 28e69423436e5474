"""Saving and publishing, of any model of transformers."""
