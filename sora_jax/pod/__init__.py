"""Many chips: the table of them, meshes, context parallelism, the planner."""
