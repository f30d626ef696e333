//! Why a token is always fresh.
//!
//! Rotation has an operating-system thread of its own, so that no load on the RPC side delays a token. It is driven
//! by levels: what is on disk is compared with what should be there, and no failure ends the attempts. The token that
//! is there stays until its own end.
//!
//! | part | input | output | module |
//! |---|---|---|---|
//! | when | TTL, jitter, clock | times and slices, purely | [`schedule`], [`due`] |
//! | where | a sandbox's runtime directory on a tmpfs | files that appear whole, findings of an audit | [`publish`], [`audit`] |
//! | what | signer, reserved generations | a token in each directory, in time | [`engine`] |
//! | who | commands of the gateway | the thread, and a handle to it | [`rotor`] |
//! | did it arrive | presented generations | delays and overdue deliveries | [`receipts`] |
//! | for how long | presented tokens, per connection | the end of a connection | [`leases`] |

pub mod audit;
pub mod clock;
pub mod due;
pub mod engine;
pub mod error;
pub mod event;
pub mod leases;
pub mod publish;
pub mod receipts;
pub mod rotor;
pub mod schedule;
