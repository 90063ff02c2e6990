"""When an epoch is reduced, by which level, and in what order its images come: no torch, no clock."""
