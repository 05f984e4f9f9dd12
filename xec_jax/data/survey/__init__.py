"""Looking at data: what is wrong with files, and which numbers are hard to believe."""
