//! Who is calling, and with what token.
