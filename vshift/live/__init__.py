"""Runs while they train, read from their folders; training does not know that it is watched."""
