"""Messages for the user: errors by the flags of the command line."""

from t2i.errors import ConfigError

FLAGS = {
    "variant": "--variant",
    "revision": "--revision",
    "config": "--config",
    "prediction_type": "--prediction-type",
    "vae": "--vae",
    "model": "--model",
    "out": "--out",
    "reference": "--reference",
    "metrics": "--metrics",
    "judge": "--judge",
    "features": "--features",
    "variance": "--variance",
    "prompts": "--prompts",
    "cfg": "--cfg",
    "n": "--n",
}


def message_of(error: Exception) -> str:
    """Returns the text of an error, in which a setting's key is replaced by its flag."""
    if isinstance(error, ConfigError) and error.key in FLAGS:
        error = error.under(FLAGS[error.key])
    return str(error)
