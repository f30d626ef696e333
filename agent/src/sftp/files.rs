//! The requests of SFTP version 3, each a call of the file system. A process of its own with one client: a call that
//! waits holds up nobody else.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc;
use russh_sftp::protocol::{
    Attrs, Data, File as Entry, FileAttributes, Handle, Name, OpenFlags, Packet, Status, StatusCode, Version,
};
use russh_sftp::server::{Handler, StatusReply};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::sync::oneshot;

use super::extensions::PIECE_MAX;
use super::handles::{Handles, Open};
use super::{attributes, extensions};

/// Entries in one answer to a listing.
const ENTRIES: usize = 128;

/// See the module.
pub(super) struct Files {
    handles: Handles,
    /// Dropped with the files, it says that the client has gone.
    _ended: oneshot::Sender<()>,
}

impl Files {
    pub(super) fn new(ended: oneshot::Sender<()>) -> Self {
        Self { handles: Handles::default(), _ended: ended }
    }
}

/// A request that was done.
pub(super) fn done(id: u32) -> Status {
    Status { id, status_code: StatusCode::Ok, error_message: "done".to_owned(), language_tag: "en".to_owned() }
}

/// A request that the file system refused.
pub(super) fn refused(error: impl Into<io::Error>) -> StatusReply {
    let error = error.into();
    let code = match error.kind() {
        io::ErrorKind::NotFound => StatusCode::NoSuchFile,
        io::ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
        io::ErrorKind::Unsupported => StatusCode::OpUnsupported,
        _ => StatusCode::Failure,
    };
    code.with_message(error.to_string())
}

/// The place that a path leads to; its last part may not be there yet.
fn real(path: &str) -> io::Result<PathBuf> {
    let path = Path::new(if path.is_empty() { "." } else { path });
    match (path.canonicalize(), path.file_name()) {
        (Err(error), Some(name)) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(parent.canonicalize()?.join(name))
        }
        (real, _) => real,
    }
}

impl Handler for Files {
    type Error = StatusReply;

    fn unimplemented(&self) -> Self::Error {
        StatusCode::OpUnsupported.into()
    }

    async fn init(&mut self, _: u32, _: HashMap<String, String>) -> Result<Version, Self::Error> {
        Ok(Version { extensions: extensions::offered(), ..Version::new() })
    }

    async fn open(
        &mut self,
        id: u32,
        path: String,
        flags: OpenFlags,
        wanted: FileAttributes,
    ) -> Result<Handle, Self::Error> {
        // A FIFO without a reader must not hold up the session.
        let file = OpenOptions::from(flags)
            .mode(attributes::mode(&wanted, 0o666))
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(path)
            .map_err(refused)?;
        Ok(Handle { id, handle: self.handles.add(Open::File(file))? })
    }

    async fn close(&mut self, id: u32, handle: String) -> Result<Status, Self::Error> {
        self.handles.remove(&handle).map(|()| done(id))
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, length: u32) -> Result<Data, Self::Error> {
        let mut data = vec![0; length.min(PIECE_MAX) as usize];
        let count = self.handles.file(&handle)?.read_at(&mut data, offset).map_err(refused)?;
        if count == 0 && length > 0 {
            return Err(StatusCode::Eof.into());
        }
        data.truncate(count);
        Ok(Data { id, data })
    }

    async fn write(&mut self, id: u32, handle: String, offset: u64, data: Vec<u8>) -> Result<Status, Self::Error> {
        self.handles.file(&handle)?.write_all_at(&data, offset).map_err(refused).map(|()| done(id))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Result<Attrs, Self::Error> {
        let metadata = fs::symlink_metadata(path).map_err(refused)?;
        Ok(Attrs { id, attrs: attributes::of(&metadata) })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Result<Attrs, Self::Error> {
        let metadata = self.handles.file(&handle)?.metadata().map_err(refused)?;
        Ok(Attrs { id, attrs: attributes::of(&metadata) })
    }

    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, Self::Error> {
        let metadata = fs::metadata(path).map_err(refused)?;
        Ok(Attrs { id, attrs: attributes::of(&metadata) })
    }

    async fn setstat(&mut self, id: u32, path: String, wanted: FileAttributes) -> Result<Status, Self::Error> {
        attributes::set(Path::new(&path), &wanted).map_err(refused).map(|()| done(id))
    }

    async fn fsetstat(&mut self, id: u32, handle: String, wanted: FileAttributes) -> Result<Status, Self::Error> {
        attributes::set_open(self.handles.file(&handle)?, &wanted).map_err(refused).map(|()| done(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Result<Handle, Self::Error> {
        let entries = fs::read_dir(&path).map_err(refused)?;
        Ok(Handle { id, handle: self.handles.add(Open::Directory { path: path.into(), entries })? })
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Result<Name, Self::Error> {
        let (path, entries) = self.handles.directory(&handle)?;
        let mut files: Vec<Entry> = Vec::new();
        for entry in entries.by_ref().take(ENTRIES) {
            let name = entry.map_err(refused)?.file_name();
            // One that has gone meanwhile is not there.
            if let Ok(metadata) = fs::symlink_metadata(path.join(&name)) {
                files.push(attributes::entry(&name.to_string_lossy(), &metadata));
            }
        }
        if files.is_empty() { Err(StatusCode::Eof.into()) } else { Ok(Name { id, files }) }
    }

    async fn remove(&mut self, id: u32, path: String) -> Result<Status, Self::Error> {
        fs::remove_file(path).map_err(refused).map(|()| done(id))
    }

    async fn mkdir(&mut self, id: u32, path: String, wanted: FileAttributes) -> Result<Status, Self::Error> {
        let mode = attributes::mode(&wanted, 0o777);
        fs::DirBuilder::new().mode(mode).create(path).map_err(refused).map(|()| done(id))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Result<Status, Self::Error> {
        fs::remove_dir(path).map_err(refused).map(|()| done(id))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Result<Name, Self::Error> {
        let real = real(&path).map_err(refused)?;
        Ok(Name { id, files: vec![Entry::dummy(real.to_string_lossy())] })
    }

    /// This version's rename replaces nothing; clients that want that have an extension.
    async fn rename(&mut self, id: u32, from: String, to: String) -> Result<Status, Self::Error> {
        renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(refused).map(|()| done(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Result<Name, Self::Error> {
        let target = fs::read_link(path).map_err(refused)?;
        Ok(Name { id, files: vec![Entry::dummy(target.to_string_lossy())] })
    }

    /// The target first: OpenSSH has it the other way round than the draft, and all clients follow OpenSSH.
    async fn symlink(&mut self, id: u32, target: String, link: String) -> Result<Status, Self::Error> {
        std::os::unix::fs::symlink(target, link).map_err(refused).map(|()| done(id))
    }

    async fn extended(&mut self, id: u32, request: String, data: Vec<u8>) -> Result<Packet, Self::Error> {
        extensions::answer(&self.handles, id, &request, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_may_be_named_before_it_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        fs::create_dir(base.join("d")).unwrap();
        let at = |path: &str| real(&format!("{}/{path}", base.display()));
        assert_eq!(at("d/../d/new").unwrap(), base.join("d/new"));
        assert_eq!(at("d/.").unwrap(), base.join("d"));
        assert!(at("none/new").is_err());
        assert_eq!(real("").unwrap(), std::env::current_dir().unwrap().canonicalize().unwrap());
    }
}
