"""Run folders → one HTML file that explains itself, and figures for papers."""
