"""What a finished stage leaves in its folder: its manifest, and the one way to open it."""
