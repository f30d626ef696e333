//! The bearer: read from the identity directory, parsed, held, and handed to each request.
//!
//! ```text
//! identity directory ──reader──► text ──claims──► generation, life ──holder──► `authorization` of each request
//! ```

pub mod claims;
pub mod holder;
pub mod reader;
