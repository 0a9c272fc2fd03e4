"""Attacks of an honest-but-curious server on its own transcript, and of a malicious one on a running client; one file each."""
