"""Losses: pure functions on tensors, one value per sample; each states the gradient that descending it produces."""
