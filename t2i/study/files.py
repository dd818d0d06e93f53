"""Files that are there whole or not at all: that they are there says that a stage is done."""

REPORT = "report"  # the folder in a study's that holds its rows, pictures and page
REAL, VAE, SHUFFLED = "real", "vae", "shuffled"
ANCHORS = {
    REAL: "the test's own pictures",
    VAE: "the same through the autoencoder: no generator of its latents does better",
    SHUFFLED: "the same with each other's captions: drawing perfectly without reading",
}


def sheet_name(run: str, guidance: float) -> str:
    """The file of a run's sample sheet."""
    return f"{run}-cfg{guidance:g}.png"
