"""Messages for the user: errors by the flags of the command line."""

from t2i.errors import ConfigError

FLAGS = {
    "variant": "--variant",
    "revision": "--revision",
    "config": "--config",
    "prediction_type": "--prediction-type",
    "vae": "--vae",
}


def message_of(error: Exception) -> str:
    """Returns the text of an error, in which a setting's key is replaced by its flag."""
    if isinstance(error, ConfigError) and error.key in FLAGS:
        error = error.under(FLAGS[error.key])
    return str(error)
