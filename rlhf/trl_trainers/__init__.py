"""TRL's trainers, given what they need so that nothing is computed twice."""
