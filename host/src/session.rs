//! Supervisor sessions and their relays.
