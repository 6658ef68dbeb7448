"""Meshes, sharding rules, collectives, and the rows of one process."""
