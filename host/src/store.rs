//! What survives a gateway.
