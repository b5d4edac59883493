"""Raw video -> packed rows: worlds, dataset, packing, pipeline."""
