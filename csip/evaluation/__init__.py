"""Embeddings become scores, and scores a page."""
