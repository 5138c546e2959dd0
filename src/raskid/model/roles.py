"""What a peer may do: the roles that tokens name."""

ROLE_VIEW = "view"
ROLE_MESSAGE = "message"
ROLE_EXECUTE = "execute"
#: Each role includes those before it.
ROLES = (ROLE_VIEW, ROLE_MESSAGE, ROLE_EXECUTE)
