"""Checkpoints for others: cards and upload to the Hub."""
