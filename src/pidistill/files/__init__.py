"""Files from outside are read as if they were hostile, and files that must survive are written whole or not at all."""
