"""The one import name of this project; its packages are the folders at the top of the repository,
linked here."""
