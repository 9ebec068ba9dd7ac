"""What the program costs, held against what a user would run instead and against the machine:
``make bench``.
"""
