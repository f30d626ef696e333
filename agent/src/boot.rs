//! From a bare kernel to a root file system with a boot spec.
//!
//! A table of steps, one after another, synchronous and single-threaded. Each may fail, and then nothing has been
//! started yet: the console says which step, on what and why, and the machine ends. What comes after the table may
//! not fail any more.

mod identity;
mod image;
mod kernel;
mod mounts;
mod network;
mod root;
mod services;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;

use proto::boot::BootSpec;
use proto::layout;

use crate::power::Power;

/// What the steps build.
#[derive(Debug)]
pub struct Machine {
    /// The way out; complete from the first step on.
    pub power: Power,
    agent: Option<OwnedFd>,
    spec: Option<BootSpec>,
}

/// What there is to do on this machine.
#[derive(Debug)]
pub enum Booted {
    /// Be the sandbox of this spec.
    Sandbox(Box<BootSpec>),
    /// Neither an image nor an identity directory: somebody wants to know whether a VM runs at all.
    Probe,
}

/// What went wrong in a step: the path or thing, and why.
#[derive(Debug)]
pub struct Fault {
    object: String,
    cause: String,
}

impl Fault {
    fn new(object: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self { object: object.to_string(), cause: cause.to_string() }
    }
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("boot step {number} of {of} failed to {act}: {object}: {cause}", of = STEPS.len(), act = .step.act,
    object = .fault.object, cause = .fault.cause)]
pub struct BootError {
    number: usize,
    step: &'static Step,
    fault: Fault,
}

#[derive(Debug)]
struct Step {
    act: &'static str,
    /// Why it is there, and why there.
    #[allow(dead_code, reason = "for those who read the table")]
    because: &'static str,
    run: fn(&mut Machine) -> Result<(), Fault>,
}

/// Before anything else: the descriptor that carries the exit code, and the devices.
const FIRST: usize = 2;

static STEPS: &[Step] = &[
    Step {
        act: "open the root share",
        because: "the exit code goes through a descriptor of a libkrun share; after the switch of roots there is no path to it",
        run: root::keep_share,
    },
    Step {
        act: "mount the devices",
        because: "the image is a disk; most kernels have done this already",
        run: mounts::early_devices,
    },
    Step {
        act: "mount the image",
        because: "read-only disk below, memory above: every boot starts from the image as it was built",
        run: root::mount_image,
    },
    Step {
        act: "take the agent along",
        because: "the share that holds this program goes away with the old root",
        run: root::clone_agent,
    },
    Step {
        act: "switch roots",
        because: "before the other mounts, so that their paths are resolved in the image and by nobody else's links",
        run: root::switch,
    },
    Step {
        act: "mount the kernel's file systems",
        because: "foreign processes are invisible in /proc: command lines and environments stay with their users",
        run: mounts::kernel,
    },
    Step {
        act: "close the kernel's log",
        because: "it is for root; before any driver has had a reason to write more into it",
        run: kernel::close_log,
    },
    Step {
        act: "wait for randomness",
        because: "keys are made of it later, and hash tables, where a wait would stop heartbeats and say nothing; \
                  libkrun has a virtio-rng, so this takes no time",
        run: kernel::await_randomness,
    },
    Step {
        act: "limit the workload",
        because: "whatever it forks, PID 1 can fork, too, and has its share of the processor",
        run: kernel::limit_workload,
    },
    Step {
        act: "install the agent",
        because: "read-only, over whatever the image has there: an image cannot carry an agent of its own",
        run: root::install_agent,
    },
    Step {
        act: "leave the first mount namespace",
        because: "the kernel starts helpers as root in it: they get no capability, and there is no identity directory in it",
        run: kernel::leave_to_helpers,
    },
    Step {
        act: "mount the identity directory",
        because: "below a directory of root's own, and in the mount namespace of the agent alone",
        run: identity::mount,
    },
    Step {
        act: "read the boot spec",
        because: "the guest pulls it; it works without a gateway",
        run: identity::read_spec,
    },
    Step {
        act: "read the services",
        because: "one that cannot be understood, or waits for itself, is found before anything runs",
        run: services::read,
    },
    Step {
        act: "read the image's configuration",
        because: "the sandbox's own spec wins, and so comes first; what is wrong is said before anything is started",
        run: image::configure,
    },
    Step {
        act: "set the clock",
        because: "never behind the host at start; the first sync makes it exact",
        run: identity::set_clock,
    },
    Step { act: "name the host", because: "programs ask for it before there is a session", run: network::name_host },
    Step { act: "bring up loopback", because: "the only interface there is", run: network::loopback },
    Step {
        act: "close the agent to the workload",
        because: "no core file, no /proc of it, not the first to die when memory is short; its limits are the workload's",
        run: mounts::shield,
    },
];

impl Machine {
    /// Nothing done yet.
    pub const fn new() -> Self {
        Self { power: Power { share: None }, agent: None, spec: None }
    }

    /// Runs the table.
    pub fn boot(&mut self) -> Result<Booted, BootError> {
        self.run(0..FIRST)?;
        if self.is_probe() {
            return Ok(Booted::Probe);
        }
        self.run(FIRST..STEPS.len())?;
        match self.spec.take() {
            Some(spec) => Ok(Booted::Sandbox(Box::new(spec))),
            None => Ok(Booted::Probe),
        }
    }

    fn run(&mut self, steps: std::ops::Range<usize>) -> Result<(), BootError> {
        for number in steps {
            let step = &STEPS[number];
            (step.run)(self).map_err(|fault| BootError { number: number + 1, step, fault })?;
        }
        Ok(())
    }

    fn is_probe(&self) -> bool {
        !Path::new(layout::IMAGE_DISK).exists() && !identity::is_offered()
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}
