"""A finished stage to its users: hub, model card."""
