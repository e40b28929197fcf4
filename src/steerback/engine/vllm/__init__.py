"""Steering inside vLLM: a plugin in its workers, and an engine that asks it for trials."""
