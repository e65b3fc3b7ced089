"""Labeling methods: each gives one number per reasoning step."""
