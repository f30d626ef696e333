//! Why a token is always fresh.
