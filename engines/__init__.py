"""How a shot is filmed: one engine per file, readable top to bottom.

An engine takes a shot and a reel and returns a new reel.
"""
