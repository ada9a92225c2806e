"""The motion adapter's trainer (VideoJAM): clips with their flow, a joint objective, measures, commands."""
