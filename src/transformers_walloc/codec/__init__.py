"""The codec: wavelet packets, bottleneck, decoders, container. The Hub gets this folder as custom code: flat."""
