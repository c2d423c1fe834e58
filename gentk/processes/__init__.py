"""Noising processes, denoisers and the noise levels they are used at."""
