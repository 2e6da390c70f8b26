"""The arena: people compare replies of policies without knowing whose they are, and their votes are kept."""
