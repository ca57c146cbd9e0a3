"""How an agent works: DSPy program classes, and the one way to run rollouts."""
