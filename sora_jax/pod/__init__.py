"""One mesh, any row length: what lies on which device, and plans of it before it is paid for."""
