"""Recipes: settings and loading.

Imports nothing: a process that cleans text needs `shared` alone, and starts in a third of the time.
"""
