"""Commands on trained models: evaluation, prediction and generation."""
