"""Loads a model and generates tokens: types, scheduler, model, loop, and the Backend that others talk to."""
