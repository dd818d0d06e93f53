"""Training: one loop, one task a component. Only this room and evaluation know Accelerate."""
