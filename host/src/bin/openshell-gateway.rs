//! The gateway daemon: configuration in, typed outcome out as a documented exit code.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use host::command::{InitFlags, exit};
use host::config::{Config, Environment, GatewayFlags};
use host::gateway::{StartError, run};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Serves sandboxes to the local user, and identity to sandboxes.
#[derive(Parser)]
#[command(name = "openshell-gateway", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    flags: GatewayFlags,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Make keys, certificates and the store in the state directory, and end
    Init(InitFlags),
}

/// Keys and tokens are in this process's memory, and each sandbox takes a few descriptors.
fn prepare_process() {
    let nothing = Rlimit { current: Some(0), maximum: Some(0) };
    // Both, because a core pattern that is a pipe ignores the limit. A process may always lower its own.
    let _core = setrlimit(Resource::Core, nothing);
    let _dump = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let files = getrlimit(Resource::Nofile);
    let _raised = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    prepare_process();
    if arguments.flags.detached {
        // Whoever started us may close its terminal. Fails only where we lead a process group already.
        let _leader_already = rustix::process::setsid();
    }
    let environment = match Environment::of_process() {
        Ok(environment) => environment,
        Err(error) => {
            eprintln!("error: failed to read the environment: {error}");
            return exit::ExitCode::Failed.into();
        }
    };
    let flags = match &arguments.verb {
        Some(Verb::Init(init)) => &init.flags,
        None => &arguments.flags,
    };
    let config = match Config::load(flags, &environment) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return exit::ExitCode::Usage.into();
        }
    };
    let filter = EnvFilter::try_new(&config.gateway.log).unwrap_or_default();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    if let Some(Verb::Init(flags)) = &arguments.verb {
        return init(&config, flags);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: failed to start the runtime: {error}");
            return exit::ExitCode::Failed.into();
        }
    };
    match runtime.block_on(async { run(&config, stopped()).await }) {
        Ok(()) => exit::ExitCode::Ok.into(),
        Err(error) => {
            eprintln!("error: {error}");
            code(&error).into()
        }
    }
}

fn init(config: &Config, flags: &InitFlags) -> ExitCode {
    let made = match host::gateway::init::init(config, flags.new_keys) {
        Ok(made) => made,
        Err(error) => {
            eprintln!("error: {error}");
            return code(&error).into();
        }
    };
    let text = if flags.is_json() { made.json() } else { made.table() };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => exit::ExitCode::Ok.into(),
        Err(error) => {
            eprintln!("error: failed to write to standard output: {error}");
            exit::ExitCode::Failed.into()
        }
    }
}

/// Ends with the first SIGTERM or SIGINT.
async fn stopped() {
    let handler = |kind| signal(kind).expect("signal handlers can be set at start");
    let (mut term, mut int) = (handler(SignalKind::terminate()), handler(SignalKind::interrupt()));
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

fn code(error: &StartError) -> exit::ExitCode {
    use host::store::lock::LockError;
    use host::store::sqlite::OpenError;
    match error {
        StartError::OtherRuntime(_) | StartError::Claim { .. } => exit::ExitCode::RuntimeDir,
        StartError::Directory(error) if error.is_runtime_dir() => exit::ExitCode::RuntimeDir,
        StartError::Directory(_) | StartError::Lock(LockError::Failed { .. }) => exit::ExitCode::StateDir,
        StartError::Open(OpenError::Failed { .. }) => exit::ExitCode::StateDir,
        StartError::Lock(LockError::Held(_)) => exit::ExitCode::StateLocked,
        StartError::Open(OpenError::Newer { .. }) => exit::ExitCode::StoreNewer,
        StartError::Open(_) | StartError::Store(_) => exit::ExitCode::StoreCorrupt,
        StartError::Keys(_) | StartError::HostKeys(_) | StartError::Secrets(_) => exit::ExitCode::Keys,
        StartError::Socket(_) => exit::ExitCode::Socket,
        StartError::Rotation(_) => exit::ExitCode::Failed,
    }
}
