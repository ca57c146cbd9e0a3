"""Messages in, completions out: in-process models with exact tokens and log-probabilities."""
