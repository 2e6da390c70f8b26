"""What a preference pair or a prompt with several completions shares is computed once."""
