"""Parts that papers take for granted. Import from the submodules."""
