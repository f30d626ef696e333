//! What a sandbox is, and who decides about it.
//!
//! One task owns one sandbox ([`task`]); everybody else holds a [`task::Handle`]. What happens next is decided by a
//! pure function over phases and events ([`decide`]), done by the task, and published on a watch channel. The
//! traits that the outside implements are declared here: [`driver::ComputeDriver`], [`record::Store`] and
//! [`link::Link`].

pub mod decide;
pub mod document;
pub mod driver;
pub mod launch;
pub mod link;
pub mod phase;
pub mod record;
pub mod registry;
pub mod rules;
pub mod spec;
pub mod task;
pub mod view;
