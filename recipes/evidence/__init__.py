"""What adaptive lambda does, asked of many runs: plan, training, noise, measurements, tables."""
