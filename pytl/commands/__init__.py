"""The commands of `pytl`: what each one asks for, does and prints."""
