"""What happens around a training step: averages, checkpoints, preemption, grids, throughput."""
