"""Batches become features: torch and timm only."""
