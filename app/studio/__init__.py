"""The web page on the queue: its form, gallery, votes and HTTP routes."""
