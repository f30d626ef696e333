//! Every place that two programs must agree on: inside the guest, in a sandbox's runtime directory on the host,
//! and between them.

/// The guest's context id and the host's, as libkrun fixes them.
pub const GUEST_CID: u32 = 3;
/// See [`GUEST_CID`].
pub const HOST_CID: u32 = 2;
/// The one vsock port that is mapped from guest to host; it leads to [`CTL_SOCKET`] in [`CTL_DIR`].
pub const CONTROL_PORT: u32 = 5100;

/// virtio-fs tag of the share that carries the agent and has no host directory. The kernel looks for this name.
pub const ROOT_TAG: &str = "/dev/root";
/// virtio-fs tag of the identity directory, the only host directory that a guest sees.
pub const IDENTITY_TAG: &str = "identity";
/// The read-only disk that holds the image.
pub const IMAGE_DISK: &str = "/dev/vda";
/// File system of the image.
pub const IMAGE_FILESYSTEM: &str = "erofs";
/// Where the kernel finds PID 1 in the root share.
pub const INIT: &str = "/init.krun";

/// A directory of the root share where the agent puts the image's root together. The share also has `/dev`, which
/// the kernel needs.
pub const STAGING: &str = "/newroot";

/// Where the identity directory stands in a sandbox.
pub const IDENTITY_DIR: &str = "/etc/openshell/auth";
/// The token, in the identity directory.
pub const TOKEN_FILE: &str = "sandbox.jwt";
/// The certificate authority of an https endpoint, in the identity directory where there is one.
pub const CA_FILE: &str = "ca.crt";
/// The boot spec, in the identity directory.
pub const BOOT_SPEC_FILE: &str = "boot.json";
/// What an image says about the programs that are to run in it (docs/images.md).
pub const IMAGE_CONFIG: &str = "/etc/openshell/image.toml";
/// Where the agent stands in a sandbox; images leave the directory empty.
pub const AGENT: &str = "/opt/openshell/bin/openshell-agent";

/// In a sandbox's runtime directory: what the guest sees as its identity directory.
pub const SHARE_DIR: &str = "share";
/// In a sandbox's runtime directory: where files are written before they are renamed into [`SHARE_DIR`].
pub const STAGE_DIR: &str = "stage";
/// In a sandbox's runtime directory: the directory that the jail binds. Never bind the socket itself.
pub const CTL_DIR: &str = "ctl";
/// The per-VM socket of the gateway, in [`CTL_DIR`].
pub const CTL_SOCKET: &str = "gateway.sock";
/// In a sandbox's runtime directory: what the keeper writes.
pub const RUN_DIR: &str = "run";
/// Locked (POSIX record lock) by the keeper for as long as it lives, in [`RUN_DIR`].
pub const RUN_LOCK: &str = "run.lock";
/// The last [`crate::budget::CONSOLE_RING`] bytes of the console, in [`RUN_DIR`].
pub const CONSOLE_FILE: &str = "console.ring";
/// How the vmm ended ([`crate::vmm::ExitRecord`]), in [`RUN_DIR`].
pub const EXIT_FILE: &str = "exit.json";

/// Exit code of a guest: this ioctl on a descriptor of any libkrun share, with the code as its argument.
pub const EXIT_CODE_IOCTL: u32 = 0x7602;

/// Environment variables that begin so are the project's own; those of an image are dropped.
pub const RESERVED_ENVIRONMENT: &str = "OPENSHELL_";

/// SSH subsystem of the agent that attaches to the main process.
pub const ATTACH_SUBSYSTEM: &str = "openshell-attach";
/// The same, taking the input of the main process from whoever has it.
pub const ATTACH_TAKING_INPUT_SUBSYSTEM: &str = "openshell-attach take-input";
/// SSH subsystem of the agent that makes a call of [`crate::debug::DebugCall`].
pub const DEBUG_SUBSYSTEM: &str = "openshell-debug";
/// SSH subsystem for files, as SFTP clients ask for it.
pub const SFTP_SUBSYSTEM: &str = "sftp";
/// SSH user name under which the gateway comes; the agent runs what it asks as the sandbox's user.
pub const SSH_USER: &str = "sandbox";
