//! The RPC services and their listeners.
