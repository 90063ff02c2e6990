"""The experiment matrix: its TOML file, the runs it expands to, their tasks, folder and estimated time."""
