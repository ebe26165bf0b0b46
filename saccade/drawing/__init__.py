"""Tensors to pictures: pure functions, no files and no networks."""
