"""What is filmed and what is remembered of it: reels, projects, edits and their files."""
