//! What a client has open.

use std::collections::HashMap;
use std::fs::{File, ReadDir};
use std::path::PathBuf;

use russh_sftp::protocol::StatusCode;
use russh_sftp::server::StatusReply;

/// More than any client opens at a time, and less than a process may.
pub(super) const HANDLES_MAX: usize = 256;

pub(super) enum Open {
    File(File),
    Directory { path: PathBuf, entries: ReadDir },
}

/// By the name that the client got.
#[derive(Default)]
pub(super) struct Handles {
    open: HashMap<String, Open>,
    last: u64,
}

impl Handles {
    pub(super) fn add(&mut self, open: Open) -> Result<String, StatusReply> {
        if self.open.len() >= HANDLES_MAX {
            return Err(StatusCode::Failure.with_message(format!("{HANDLES_MAX} files are open, and that is the most")));
        }
        self.last += 1;
        let handle = self.last.to_string();
        self.open.insert(handle.clone(), open);
        Ok(handle)
    }

    pub(super) fn remove(&mut self, handle: &str) -> Result<(), StatusReply> {
        self.open.remove(handle).map(drop).ok_or_else(unknown)
    }

    pub(super) fn file(&self, handle: &str) -> Result<&File, StatusReply> {
        match self.open.get(handle) {
            Some(Open::File(file)) => Ok(file),
            _ => Err(unknown()),
        }
    }

    pub(super) fn directory(&mut self, handle: &str) -> Result<(&PathBuf, &mut ReadDir), StatusReply> {
        match self.open.get_mut(handle) {
            Some(Open::Directory { path, entries }) => Ok((path, entries)),
            _ => Err(unknown()),
        }
    }
}

fn unknown() -> StatusReply {
    StatusCode::Failure.with_message("this handle is not open")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_bounded_and_never_come_again() {
        let mut handles = Handles::default();
        let open = || Open::File(File::open("/dev/null").unwrap());
        let first = handles.add(open()).unwrap();
        handles.remove(&first).unwrap();
        assert!(handles.file(&first).is_err() && handles.remove(&first).is_err());
        let names: Vec<String> = (0..HANDLES_MAX).map(|_| handles.add(open()).unwrap()).collect();
        assert!(!names.contains(&first));
        assert!(handles.add(open()).is_err());
        assert!(handles.file(&names[0]).is_ok() && handles.directory(&names[0]).is_err());
    }
}
