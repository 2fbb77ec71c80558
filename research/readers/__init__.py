"""What frozen models of others still read of a signal that was coded with few numbers."""
