"""The readers and writers of files: pictures, sound, rasters and volumes, and `.walloc` files of them."""
