"""Experiments of learning on latents."""
