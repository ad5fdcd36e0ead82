"""The stages of one session: each computes what is missing, writes it, and returns the key of what is on disk."""
