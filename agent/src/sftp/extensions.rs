//! The extensions that OpenSSH's clients use where they are there.

use std::collections::HashMap;
use std::path::PathBuf;

use bytes::Bytes;
use russh_sftp::extensions::{
    EXPAND_PATH, ExpandPathExtension, FSYNC, FsyncExtension, HARDLINK, HardlinkExtension, LIMITS, LimitsExtension,
};
use russh_sftp::protocol::{ExtendedReply, File as Entry, Name, Packet, StatusCode};
use russh_sftp::server::StatusReply;
use russh_sftp::{de, ser};
use serde::de::DeserializeOwned;

use super::PACKET_MAX;
use super::files::{done, refused};
use super::handles::{HANDLES_MAX, Handles};

/// A rename that replaces what is there.
const RENAME: &str = "posix-rename@openssh.com";
/// The longest read or write: a packet without its header.
pub(super) const PIECE_MAX: u32 = PACKET_MAX - 1024;

/// What the server says it has.
pub(super) fn offered() -> HashMap<String, String> {
    [LIMITS, HARDLINK, FSYNC, RENAME, EXPAND_PATH].map(|name| (name.to_owned(), "1".to_owned())).into()
}

/// Does what an extended request asks for.
pub(super) fn answer(handles: &Handles, id: u32, request: &str, data: Vec<u8>) -> Result<Packet, StatusReply> {
    match request {
        LIMITS => limits(id),
        HARDLINK => {
            let HardlinkExtension { oldpath, newpath } = parse(data)?;
            std::fs::hard_link(oldpath, newpath).map_err(refused).map(|()| done(id).into())
        }
        RENAME => {
            let HardlinkExtension { oldpath, newpath } = parse(data)?;
            std::fs::rename(oldpath, newpath).map_err(refused).map(|()| done(id).into())
        }
        FSYNC => {
            let FsyncExtension { handle } = parse(data)?;
            handles.file(&handle)?.sync_all().map_err(refused).map(|()| done(id).into())
        }
        EXPAND_PATH => {
            let ExpandPathExtension { path } = parse(data)?;
            let path = expand(&path, std::env::var_os("HOME").map(PathBuf::from));
            Ok(Name { id, files: vec![Entry::dummy(path.to_string_lossy())] }.into())
        }
        _ => Err(StatusCode::OpUnsupported.into()),
    }
}

fn limits(id: u32) -> Result<Packet, StatusReply> {
    let limits = LimitsExtension {
        max_packet_len: PACKET_MAX.into(),
        max_read_len: PIECE_MAX.into(),
        max_write_len: PIECE_MAX.into(),
        max_open_handles: HANDLES_MAX as u64,
    };
    let data = ser::to_bytes(&limits).map_err(|error| StatusCode::Failure.with_message(error.to_string()))?;
    Ok(Packet::ExtendedReply(ExtendedReply { id, data: data.to_vec() }))
}

fn parse<T: DeserializeOwned>(data: Vec<u8>) -> Result<T, StatusReply> {
    de::from_bytes(&mut Bytes::from(data)).map_err(|error| StatusCode::BadMessage.with_message(error.to_string()))
}

/// `~` is the home; that of others is not known here.
fn expand(path: &str, home: Option<PathBuf>) -> PathBuf {
    let home = home.unwrap_or_else(|| "/".into());
    match path.strip_prefix('~') {
        Some("") => home,
        Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_is_the_home() {
        let home = || Some(PathBuf::from("/home/me"));
        for (path, expanded) in
            [("~", "/home/me"), ("~/a b", "/home/me/a b"), ("~you/a", "~you/a"), ("/a~", "/a~"), ("a", "a")]
        {
            assert_eq!(expand(path, home()), PathBuf::from(expanded), "{path}");
        }
        assert_eq!(expand("~", None), PathBuf::from("/"));
    }
}
