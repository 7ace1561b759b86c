"""Partial Network Cloning beside what a user would do instead: see README.md."""
