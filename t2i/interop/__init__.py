"""Other people's checkpoint formats: names of keys and configs, from state dict to state dict."""
