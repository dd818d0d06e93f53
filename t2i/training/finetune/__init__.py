"""Fine-tuning of a whole pipeline: LoRA, DreamBooth, textual inversion or all weights."""
