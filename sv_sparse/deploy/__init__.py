"""From a checkpoint to a product."""
