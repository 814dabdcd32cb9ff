"""The generate command: turn adapters, references and a prompt into an mp4 and a JSON record of its settings."""
