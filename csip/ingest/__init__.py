"""Pixels become rows."""
