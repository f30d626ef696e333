//! A guest without a VM: holds its sandbox's session until it is told to stop.
//!
//! Not `agent::supervise`: that one is alone on its machine, ends every process of it and steps its clock. This
//! machine is the host.

use std::path::PathBuf;
use std::sync::Arc;

use agent::session::endpoint::{Endpoint, Endpoints};
use agent::session::{Relays, Session, run_control, run_data};
use agent::ssh::Server;
use agent::token::holder::Tokens;
use agent::workload::Workload;
use caps::{CapSet, Capability};
use proto::boot::BootSpec;
use proto::layout;
use proto::vmm::VmmSpec;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use tokio::sync::mpsc;

/// Relay orders between the two connections.
const ORDERS: usize = 16;

/// `fake-vmm jail`.
pub(crate) fn run() -> Result<(), String> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("no death with the keeper: {error}"))?;
    let (keeper, vmm): (i32, VmmSpec) = serde_json::from_reader(std::io::stdin())
        .map_err(|error| format!("failed to read the keeper's document: {error}"))?;
    // It may have died before it was asked about.
    if getppid() != Pid::from_raw(keeper) {
        return Err("the keeper is gone".to_owned());
    }
    leave_the_clock_alone()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("failed to make a runtime: {error}"))?.block_on(live(vmm))
}

/// An agent steps the clock of its guest. Here it must not be able to, not even by a hair.
fn leave_the_clock_alone() -> Result<(), String> {
    let sets = [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable];
    let dropped = sets.into_iter().try_for_each(|set| caps::drop(None, set, Capability::CAP_SYS_TIME));
    dropped.map_err(|error| format!("failed to give up CAP_SYS_TIME: {error}"))
}

/// Ends well only by a stop order.
async fn live(vmm: VmmSpec) -> Result<(), String> {
    let share = vmm.runtime_dir.join(layout::SHARE_DIR);
    // The boot spec names the vsock port that leads here.
    let gateway = vmm.runtime_dir.join(layout::CTL_DIR).join(layout::CTL_SOCKET);
    let endpoints = Endpoints::from(Endpoint::Unix(gateway));
    let document = std::fs::read(share.join(layout::BOOT_SPEC_FILE));
    let document = document.map_err(|error| format!("failed to read the boot spec: {error}"))?;
    let spec: BootSpec = serde_json::from_slice(&document).map_err(|error| format!("not a boot spec: {error}"))?;
    // No program is started on this machine, whoever asks for it.
    let workload = Arc::new(Workload::new(&spec, PathBuf::from("/dev/null"), share.clone(), Arc::default()));
    let ssh = Arc::new(Server::new(&spec.ssh_host_key, workload.clone(), None, None)?);
    let tokens = Tokens::new(share, spec.sandbox_id);
    let session = Arc::new(Session::new(Arc::new(spec), tokens, workload.secrets.clone()));

    let (orders, inbox) = mpsc::channel(ORDERS);
    let mut relays = Relays::new(inbox);
    let control = tokio::spawn(run_control(session.clone(), endpoints.clone(), orders));
    let mut stop = session.stop.subscribe();
    tokio::select! {
        _ = stop.wait_for(Option::is_some) => Ok(()),
        ended = control => Err(format!("the control connection's task ended: {ended:?}")),
        () = run_data(session.clone(), endpoints, &mut relays, ssh) => Err("the data connection's task ended".to_owned()),
    }
}
