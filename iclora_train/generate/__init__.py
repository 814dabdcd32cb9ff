"""The generate command: adapters, references and a prompt to an mp4 and a JSON record of how it was made."""
