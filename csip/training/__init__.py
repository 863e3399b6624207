"""Features learn to tell people apart."""
