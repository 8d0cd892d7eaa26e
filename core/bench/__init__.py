"""Races: kernels and their peers side by side, beside what the machine allows."""
