//! The numbers of the token path, the session and the lifecycle.
//!
//! Those that follow from the token's time to live are functions of it. The assertions at the end are taken at
//! the smallest TTL, where they bind.

use std::time::Duration;

/// The shortest token TTL that a gateway accepts.
pub const TTL_MIN: Duration = Duration::from_secs(30);
/// The TTL where nothing is configured.
pub const TTL_DEFAULT: Duration = Duration::from_secs(10 * 60);
/// The longest token TTL that a gateway accepts. There is no "never".
pub const TTL_MAX: Duration = Duration::from_secs(60 * 60);

/// For how long a guest may trust a directory entry of a libkrun virtio-fs share (fixed in libkrun 1.19).
/// Listing the directory refreshes its entries at once; the schedule holds even for a reader that does not list.
pub const SHARE_ENTRY_LIFETIME: Duration = Duration::from_secs(5);

/// Missed heartbeats after which either side gives a session up.
pub const HEARTBEATS_MISSED: u32 = 3;

/// First delay before a reconnect; doubles up to [`RECONNECT_MAX`], full jitter.
pub const RECONNECT_MIN: Duration = Duration::from_millis(100);
/// The cap of the delay before a reconnect.
pub const RECONNECT_MAX: Duration = Duration::from_secs(10);

/// A new connection on a per-VM socket must make a valid RPC within this time, or it is closed.
pub const FIRST_RPC: Duration = Duration::from_secs(2);
/// Connections that one VM may hold open at a time.
pub const CONNECTIONS_PER_VM: usize = 8;
/// Requests that may be refused on one connection of a sandbox. An honest agent hears a few in its life, and gives the
/// connection up itself; whoever comes this far tries tokens out, and each costs a signature check.
pub const REFUSALS_PER_CONNECTION: u32 = 256;
/// For how long a sandbox gets no new connection after one was closed for that.
pub const FLOOD_PAUSE: Duration = Duration::from_secs(1);
/// HTTP/2 connection window on per-VM sockets. Bounds the bytes on their way, not the packets, and the kernel charges
/// the vmm's socket buffer by packet, at least 768 bytes each. The agent therefore also paces small packets to a silent
/// gateway (its `session/pacing.rs`). Both together keep an honest agent from filling the pipe; a full pipe freezes the
/// whole VM.
pub const VM_CONNECTION_WINDOW: u32 = 128 * 1024;
/// HTTP/2 stream window on per-VM sockets. A relay of an agent that does not count credit, whose reader has stopped,
/// holds this much of the connection's window: three may, and the others and the Sync of that connection go on.
pub const VM_STREAM_WINDOW: u32 = 32 * 1024;
/// The same window in the other direction: an agent always reads what it can, and no pipe is at stake.
pub const AGENT_STREAM_WINDOW: u32 = 64 * 1024;
/// Bytes of a relay that may be on their way in each direction, or wait for whoever reads them. Each end of a relay holds
/// so much at most, and a piece that is being handed over.
pub const RELAY_CREDIT: u32 = 64 * 1024;
/// HTTP/2 stream window between a user and the gateway, both ways.
pub const USER_STREAM_WINDOW: u32 = 64 * 1024;
/// HTTP/2 connection window between a user and the gateway, both ways. So far above a stream's because an
/// implementation may end a connection on which many short frames wait unread, as they do while a terminal is paused:
/// h2 0.4.20 charges each with up to 256 bytes, to half of this.
pub const USER_CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// The default size of a unix socket's send buffer (`net.core.wmem_default`), which libkrun leaves alone.
pub const VMM_SOCKET_BUFFER: u32 = 208 * 1024;
/// The largest chunk of bytes in one relay frame: with what gRPC adds to it, it fits into the window of a stream.
pub const RELAY_CHUNK: usize = 28 * 1024;

/// How long the agent waits for the answer to a hello; a vsock connect succeeds even where nobody listens.
pub const HELLO: Duration = Duration::from_secs(5);
/// How long either side waits for any other unary RPC of the session.
pub const UNARY: Duration = Duration::from_secs(5);
/// How long the gateway waits for an agent to open a relay.
pub const RELAY_OPEN: Duration = Duration::from_secs(10);

/// From create to session up, where nothing is configured. Slow (emulated) hosts configure more.
pub const PROVISIONING: Duration = Duration::from_secs(60);
/// What a guest may use to end its processes and to power off.
pub const STOP_GUEST: Duration = Duration::from_secs(10);
/// After which the host kills the vmm.
pub const STOP_HOST: Duration = Duration::from_secs(15);

/// The longest certificate authority that is read, in bytes.
pub const CA_MAX: usize = 64 * 1024;

/// How long a main process waits for its secrets before it is given up.
pub const SECRETS: Duration = Duration::from_secs(5 * 60);
/// How long a main process waits for services that are not ready; then it starts without them.
pub const SERVICES: Duration = Duration::from_secs(2 * 60);
/// The longest word about its services that an agent sends with a Sync, in bytes.
pub const SERVICES_NOTE_MAX: usize = 512;

/// The longest token file that is read, in bytes.
pub const TOKEN_FILE_MAX: usize = 8 * 1024;
/// The longest boot spec that is read, in bytes.
pub const BOOT_SPEC_MAX: usize = 1024 * 1024;
/// The console ring of one VM, in bytes.
pub const CONSOLE_RING: usize = 1024 * 1024;
/// What a main process may have written and is replayed to whoever attaches, in bytes.
pub const MAIN_OUTPUT_RING: usize = 1024 * 1024;

/// Variables that a request may bring.
pub const ENVIRONMENT_MAX: usize = 128;
/// The longest name of one, in bytes.
pub const VARIABLE_NAME_MAX: usize = 256;
/// The longest value of one, in bytes.
pub const VARIABLE_VALUE_MAX: usize = 8 * 1024;
/// All that they may have together, in bytes.
pub const ENVIRONMENT_BYTES_MAX: usize = 512 * 1024;

/// Generations reserved in the store at a time; a publish inside a block needs no durable write.
pub const GENERATION_BLOCK: u64 = 256;

/// The interval of heartbeats: min(15 s, TTL / 15).
pub const fn heartbeat(ttl: Duration) -> Duration {
    min(Duration::from_secs(15), Duration::from_millis(ttl.as_millis() as u64 / 15))
}

/// Tolerance when `exp` and `iat` are checked: min(5 s, TTL / 10).
pub const fn leeway(ttl: Duration) -> Duration {
    min(Duration::from_secs(5), Duration::from_millis(ttl.as_millis() as u64 / 10))
}

/// The earliest age at which a token is replaced: 45 % of its life.
pub const fn rotate_from(ttl: Duration) -> Duration {
    Duration::from_millis(ttl.as_millis() as u64 * 45 / 100)
}

/// The latest age at which a token is replaced: 55 % of its life.
pub const fn rotate_until(ttl: Duration) -> Duration {
    Duration::from_millis(ttl.as_millis() as u64 * 55 / 100)
}

/// The age at which the agent reads again even if no heartbeat told it to: 60 % of the token's life.
pub const fn reread_at(ttl: Duration) -> Duration {
    Duration::from_millis(ttl.as_millis() as u64 * 60 / 100)
}

/// How long an agent may take to present a new token before that is worth a condition: three heartbeats.
pub const fn receipt_deadline(ttl: Duration) -> Duration {
    Duration::from_millis(3 * heartbeat(ttl).as_millis() as u64)
}

/// How often every identity directory is compared with what should be in it: min(30 s, TTL / 4).
pub const fn audit_interval(ttl: Duration) -> Duration {
    min(Duration::from_secs(30), Duration::from_millis(ttl.as_millis() as u64 / 4))
}

/// How long a sandbox may be without a session, its vmm alive, before it is restarted by policy: max(5 min, TTL).
pub const fn disconnected_restart(ttl: Duration) -> Duration {
    let five_minutes = Duration::from_secs(300);
    if ttl.as_millis() > five_minutes.as_millis() { ttl } else { five_minutes }
}

const fn min(a: Duration, b: Duration) -> Duration {
    if a.as_nanos() < b.as_nanos() { a } else { b }
}

// A token that was published at the latest moment is seen before its predecessor ends, even by a reader with a
// stale directory entry that misses one heartbeat.
const _: () = assert!(
    rotate_until(TTL_MIN).as_millis()
        <= TTL_MIN.as_millis()
            - (SHARE_ENTRY_LIFETIME.as_millis() + 2 * heartbeat(TTL_MIN).as_millis() + leeway(TTL_MIN).as_millis())
);
// The agent's own timer comes after the rotation that it makes up for, and leaves time to present what it finds.
const _: () = assert!(reread_at(TTL_MIN).as_millis() > rotate_until(TTL_MIN).as_millis());
const _: () = assert!(
    reread_at(TTL_MIN).as_millis() + SHARE_ENTRY_LIFETIME.as_millis() + UNARY.as_millis() < TTL_MIN.as_millis()
);
// An audit heals a directory in time.
const _: () = assert!(rotate_until(TTL_MIN).as_millis() + audit_interval(TTL_MIN).as_millis() < TTL_MIN.as_millis());
// Necessary, not sufficient: the agent paces small packets, too.
const _: () = assert!(VM_CONNECTION_WINDOW < VMM_SOCKET_BUFFER);
// Stopped readers do not stop the others at once: there is room for a chunk of another relay.
const _: () = assert!(3 * VM_STREAM_WINDOW + RELAY_CHUNK as u32 <= VM_CONNECTION_WINDOW);
const _: () = assert!(RELAY_CHUNK + 1024 <= VM_STREAM_WINDOW as usize);
// A paused stream full of the shortest exec events (a gRPC header, and a byte of output in three messages).
const _: () = assert!(USER_STREAM_WINDOW / 10 * 256 < USER_CONNECTION_WINDOW / 2);
// The host waits longer than the guest needs.
const _: () = assert!(STOP_HOST.as_millis() > STOP_GUEST.as_millis());
