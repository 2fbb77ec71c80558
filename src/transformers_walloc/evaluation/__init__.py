"""Measuring codecs: metrics, rivals, tables, pictures."""
