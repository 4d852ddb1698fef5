"""What a person can choose: frozen dataclasses, and how they are read, checked and written.

Here are the configurations of the stages. That of another command stands in `config.py` of the room that does its work.
"""
