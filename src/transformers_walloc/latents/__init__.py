"""What models eat: latents as values, windows, data sets, folded patch embeddings."""
