"""What several test files share.

- `fixture_types`: types of the fixtures that are functions
- `images`: OCI images and archives
- `leftovers`: what a test leaves behind, and its removal
- `processes`: finding processes of the host
- `waiting`: time limits and polling
"""
