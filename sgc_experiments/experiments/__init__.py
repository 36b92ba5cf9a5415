"""Entry points as recipes: each module runs one of them on a validated configuration."""
