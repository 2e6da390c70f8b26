"""A finished policy to talk to: in the terminal, and as a server that clients of OpenAI understand."""
