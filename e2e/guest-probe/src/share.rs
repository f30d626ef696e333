//! Guest root against the identity directory: every way that the kernel has to change something is tried.

use rustix::fd::OwnedFd;
use rustix::fs::*;
use rustix::io::Result;
use rustix::mount::{MountFlags, mount, mount_remount};

const AT: &str = "/newroot";

type Attempt = (&'static str, fn(&OwnedFd) -> Result<()>);

const FILE: &str = "sandbox.jwt";
const OTHER: &str = "boot.json";
const NEW: &str = "new";

const ATTEMPTS: [Attempt; 26] = [
    ("open for writing", |at| openat(at, FILE, OFlags::WRONLY, Mode::empty()).map(drop)),
    ("open for both", |at| openat(at, FILE, OFlags::RDWR, Mode::empty()).map(drop)),
    ("open to append", |at| openat(at, FILE, OFlags::WRONLY | OFlags::APPEND, Mode::empty()).map(drop)),
    ("open to truncate", |at| openat(at, FILE, OFlags::WRONLY | OFlags::TRUNC, Mode::empty()).map(drop)),
    ("read and truncate", |at| openat(at, FILE, OFlags::RDONLY | OFlags::TRUNC, Mode::empty()).map(drop)),
    ("create", |at| openat(at, NEW, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, Mode::RUSR).map(drop)),
    ("create to read", |at| openat(at, NEW, OFlags::RDONLY | OFlags::CREATE, Mode::RUSR).map(drop)),
    ("create without name", |at| openat(at, ".", OFlags::WRONLY | OFlags::TMPFILE, Mode::RUSR).map(drop)),
    ("unlink", |at| unlinkat(at, FILE, AtFlags::empty())),
    ("remove directory", |at| unlinkat(at, ".", AtFlags::REMOVEDIR)),
    ("rename", |at| renameat(at, FILE, at, NEW)),
    ("rename over", |at| renameat(at, OTHER, at, FILE)),
    ("exchange", |at| renameat_with(at, OTHER, at, FILE, RenameFlags::EXCHANGE)),
    ("change mode", |at| chmodat(at, FILE, Mode::RWXU, AtFlags::empty())),
    ("change mode of the directory", |at| fchmod(at, Mode::RWXU)),
    ("change owner", |at| chownat(at, FILE, Some(Uid::ROOT), Some(Gid::ROOT), AtFlags::empty())),
    ("change owner of the directory", |at| fchown(at, Some(Uid::from_raw(1000)), None)),
    ("truncate by descriptor", |at| {
        let file = openat(at, FILE, OFlags::RDONLY, Mode::empty())?;
        ftruncate(&file, 0)
    }),
    ("allocate", |at| {
        let file = openat(at, FILE, OFlags::RDONLY, Mode::empty())?;
        fallocate(&file, FallocateFlags::empty(), 0, 1 << 16)
    }),
    ("link", |at| linkat(at, FILE, at, NEW, AtFlags::empty())),
    ("symbolic link", |at| symlinkat("/etc/passwd", at, NEW)),
    ("make directory", |at| mkdirat(at, NEW, Mode::RWXU)),
    ("make fifo", |at| mknodat(at, NEW, FileType::Fifo, Mode::RUSR, 0)),
    ("make device", |at| mknodat(at, NEW, FileType::CharacterDevice, Mode::RUSR, makedev(1, 3))),
    ("set times", |at| {
        let epoch = Timespec { tv_sec: 0, tv_nsec: 0 };
        utimensat(at, FILE, &Timestamps { last_access: epoch, last_modification: epoch }, AtFlags::empty())
    }),
    ("set attribute", |at| {
        let file = openat(at, FILE, OFlags::RDONLY, Mode::empty())?;
        fsetxattr(&file, "user.test", b"x", XattrFlags::empty())
    }),
];

pub(crate) fn attempt() {
    if let Err(error) = mount("identity", AT, "virtiofs", MountFlags::empty(), None) {
        println!("share: failed to mount: {error}");
        return;
    }
    println!("share: remounted for writing: {:?}", mount_remount(AT, MountFlags::empty(), ""));
    let directory = match open(AT, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
        Ok(directory) => directory,
        Err(error) => {
            println!("share: failed to open: {error}");
            return;
        }
    };
    // That it can be read shows that the refusals below are no accident.
    println!("share: read {} bytes", std::fs::read(format!("{AT}/{FILE}")).map_or(0, |content| content.len()));
    for (what, attempt) in ATTEMPTS {
        match attempt(&directory) {
            Ok(()) => println!("share: SUCCEEDED: {what}"),
            Err(error) => println!("share: refused: {what}: {error}"),
        }
    }
    println!("share: {} attempts", ATTEMPTS.len());
}
