//! Everything that is `unsafe`: libkrun's C interface, loading libkrunfw, and one system call without a safe wrapper.
//!
//! libkrun 1.19 keeps its own order: implicit devices are switched off before explicit ones are added.

use std::{
    ffi::{CStr, CString, c_int},
    io,
    path::Path,
    ptr,
};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use proto::{
    layout,
    vmm::{Failure, FailureKind},
};

use crate::failure;

const LIBKRUNFW: &str = "libkrunfw.so.5";
/// Directories of the guest's first root, parents first. The kernel mounts devtmpfs on `/dev`, the agent the others.
const ROOT_DIRECTORIES: [&CStr; 5] = [c"/dev", c"/proc", c"/sys", c"/newroot", c"/mnt"];
/// Opened by libkrun itself when the device is activated: the pipe to the keeper.
const CONSOLE: &CStr = c"/proc/self/fd/1";

/// Closes every descriptor from `first` on. Must come before the process has opened any of its own.
pub(crate) fn close_descriptors_from(first: u32) {
    // SAFETY: takes three integers and touches no memory. No value in this process owns one of these descriptors
    // yet, so that none is used or closed after it.
    unsafe { nix::libc::syscall(nix::libc::SYS_close_range, first, u32::MAX, 0) };
}

/// libkrunfw is mapped into this process.
pub(crate) struct Firmware(());

impl Firmware {
    /// libkrun asks for it by its bare name later, when no path leads to it any more; the dynamic linker then finds
    /// that a library of this name is loaded already.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, Failure> {
        let name = path.unwrap_or(Path::new(LIBKRUNFW));
        // SAFETY: libkrunfw is data with three accessors; its initialisers do nothing.
        match unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                // Mapped until the process ends.
                std::mem::forget(library);
                Ok(Self(()))
            }
            Err(error) => Err(Failure {
                kind: FailureKind::Libkrunfw,
                message: format!("failed to load {}: {}", name.display(), cause(&error)),
                remedy: format!("install {LIBKRUNFW}, or name its absolute path as libkrunfw in the configuration"),
            }),
        }
    }
}

/// The loader's own words stand in the source.
fn cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// The names in the jail of what the guest gets.
#[derive(Clone, Copy)]
pub(crate) struct GuestFiles {
    pub(crate) image: &'static CStr,
    pub(crate) share: &'static CStr,
    pub(crate) socket: &'static CStr,
}

/// What a VM is made of.
pub(crate) struct VmConfig {
    pub(crate) agent: &'static [u8],
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u32,
    pub(crate) sandbox: Option<GuestFiles>,
}

/// A configured VM that does not run yet.
pub(crate) struct Machine {
    context: u32,
}

impl Machine {
    pub(crate) fn configure(_: &Firmware, config: &VmConfig) -> Result<Self, Failure> {
        // SAFETY: takes integers only; -1 is standard error, which it does not take ownership of. 2 = warnings,
        // 2 = no colours, 1 = no environment.
        check("start its log", unsafe { krun::krun_init_log(-1, 2, 2, 1) })?;
        let machine = Self { context: check("create a context", krun::krun_create_ctx())? };
        let context = machine.context;
        check("size the VM", krun::krun_set_vm_config(context, config.vcpus, config.memory_mib))?;
        check("leave its init away", krun::krun_disable_implicit_init(context))?;
        check("leave its vsock away", krun::krun_disable_implicit_vsock(context))?;
        // SAFETY: a valid C string, copied by the callee.
        check("set the console", unsafe { krun::krun_set_console_output(context, CONSOLE.as_ptr()) })?;
        machine.add_root(config.agent)?;
        if let Some(files) = &config.sandbox {
            machine.add_sandbox(files)?;
        }
        Ok(machine)
    }

    /// A share with no directory of the host behind it: a few empty directories and the agent.
    fn add_root(&self, agent: &'static [u8]) -> Result<(), Failure> {
        let tag = c_string(layout::ROOT_TAG)?;
        self.add_share(&tag, None)?;
        for directory in ROOT_DIRECTORIES {
            // SAFETY: valid C strings, copied by the callee.
            let added = unsafe { krun::krun_fs_add_overlay_dir(self.context, tag.as_ptr(), directory.as_ptr(), 0o755) };
            check("add a directory to the guest's root", added)?;
        }
        let init = c_string(layout::INIT)?;
        // SAFETY: the strings are valid and copied; `agent` is static, so that the bytes outlive the VM, which only
        // reads them.
        let added = unsafe {
            krun::krun_fs_add_overlay_file(
                self.context,
                tag.as_ptr(),
                init.as_ptr(),
                agent.as_ptr(),
                agent.len(),
                0o755,
                false,
            )
        };
        check("add the agent to the guest's root", added).map(drop)
    }

    fn add_sandbox(&self, files: &GuestFiles) -> Result<(), Failure> {
        // SAFETY: valid C strings, copied by the callee.
        let added = unsafe { krun::krun_add_disk(self.context, c"root".as_ptr(), files.image.as_ptr(), true) };
        check("attach the image", added)?;
        self.add_share(&c_string(layout::IDENTITY_TAG)?, Some(files.share))?;
        // No transparent sockets: the guest reaches the one mapped port and nothing else.
        check("add vsock", krun::krun_add_vsock(self.context, 0))?;
        // SAFETY: a valid C string, copied by the callee.
        let added =
            unsafe { krun::krun_add_vsock_port2(self.context, layout::CONTROL_PORT, files.socket.as_ptr(), false) };
        check("map the control port", added).map(drop)
    }

    /// Read-only, and never with a DAX window: through one a guest corrupts the vmm's memory.
    fn add_share(&self, tag: &CStr, directory: Option<&CStr>) -> Result<(), Failure> {
        let directory = directory.map_or(ptr::null(), CStr::as_ptr);
        // SAFETY: valid C strings, or null for a share without a directory; copied by the callee.
        let added = unsafe { krun::krun_add_virtiofs3(self.context, tag.as_ptr(), directory, 0, true) };
        check("add a share", added).map(drop)
    }

    /// Becomes the VM. Returns only when it could not.
    pub(crate) fn enter(self) -> Failure {
        match check("start the VM", krun::krun_start_enter(self.context)) {
            Err(failure) => failure,
            Ok(_) => failure::libkrun("start the VM", "it returned without an error"),
        }
    }
}

fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|error| failure::libkrun("take a name", error))
}

/// libkrun answers with a negative errno, or with something to use.
fn check(act: &str, answer: c_int) -> Result<u32, Failure> {
    u32::try_from(answer).map_err(|_| failure::libkrun(act, io::Error::from_raw_os_error(answer.saturating_neg())))
}
