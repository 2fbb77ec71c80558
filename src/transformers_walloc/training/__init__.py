"""Making codecs: closed-form fit, training, entropy tables, conversion."""
