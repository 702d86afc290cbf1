"""Commands on models and runs: trim, export, inspect, compare, cost."""
