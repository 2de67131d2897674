"""Plug-ins into other people's libraries, one file a library. They stand on the ops and nothing else."""
