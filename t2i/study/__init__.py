"""Studies: trainings and their evaluations as one resumable experiment, and its report."""
