"""Files that people bring or take away: paths, checkpoints, pictures, videos."""
