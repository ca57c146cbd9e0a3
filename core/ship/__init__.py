"""What a study found, made to leave it: a folder that is checked before it is believed, a program to call, a server."""
