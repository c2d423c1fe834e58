"""The command line. No module here imports torch at its top: `gentk --help` answers in a moment."""
