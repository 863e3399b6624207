"""CSIP: surveillance video to people who can be found again."""
