"""Settings: their types, defaults and checks."""
