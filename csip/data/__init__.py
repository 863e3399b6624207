"""Rows become batches."""
