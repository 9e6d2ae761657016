"""Models draw images: denoisers (teachers), students, the time grid of both, and the samplers of teachers."""
