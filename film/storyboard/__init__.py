"""Shots in words: the value, its text grammar and its JSON form."""
