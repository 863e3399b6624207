"""Labelled people: one file a benchmark, and the stage that imports any of them."""
