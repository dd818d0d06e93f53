"""Training: one loop, one task per component. Only training and evaluation import Accelerate."""
