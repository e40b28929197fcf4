"""Training self-correction in: rows with spans, masked loss, live steering during training.

Importing this loads no model library.
"""
