"""Schedules, interpolants, parameterisations and solvers: pure maths."""
