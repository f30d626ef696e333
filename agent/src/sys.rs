//! The system calls of the agent, each behind a function that says what it is for. Thin: a decision made here
//! would be a decision that no test sees.

pub mod cgroup;
pub mod clock;
pub mod image_file;
pub mod loopback;
pub mod privileges;
pub mod processes;
#[allow(unsafe_code)]
pub mod raw;
pub mod seccomp;
