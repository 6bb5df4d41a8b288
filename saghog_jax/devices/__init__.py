"""Devices and processes: mesh and shardings, several hosts, precision."""
