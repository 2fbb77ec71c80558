"""How large signals may be unless the caller says otherwise: in pixels, or in samples of one channel."""

# To encode. It takes up to 40 bytes of memory for a pixel, or for a sample of every channel, so about 2.5 GB for 67
# megapixels, or for 25 minutes at 44.1 kHz.
MAX_ENCODED_PIXELS = MAX_ENCODED_SAMPLES = 2**26

# To decode, counted after padding to whole patches: Pillow's limit against bombs, and three hours at 48 kHz.
MAX_DECODED_PIXELS = 178_956_970
MAX_DECODED_SAMPLES = 2**29
