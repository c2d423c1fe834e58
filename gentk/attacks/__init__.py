"""Attacks on classifiers with and without a purifier in front of them; images are float32 in [0, 1] throughout."""
