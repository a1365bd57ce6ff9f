"""The studio: a page for people on the durable queue, its gallery, votes and routes."""
