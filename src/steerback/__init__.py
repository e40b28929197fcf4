"""Measure whether a language model steers back when it is pushed off course from inside."""

__version__ = "0.1.0"
